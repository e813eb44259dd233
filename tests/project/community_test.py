"""The files around the source agree with it: versions, stages of CI, checks before a commit, and AGENTS.md."""

import re
import shlex
import tomllib

import pytest
import yaml

from histojax import __version__
from histojax.cli.main import parse
from tests.conftest import ROOT

AGENTS = (ROOT / "AGENTS.md").read_text()
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
STAGES = re.search(r"^STAGES=\((.*)\)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)[1].split()  # type: ignore[index]


def test_all_files_state_the_same_version() -> None:
    released = re.findall(r"^## \[(\d\S*)\] - \d{4}-\d{2}-\d{2}$", CHANGELOG, re.MULTILINE)
    assert released[0] == __version__
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    assert CHANGELOG.index("## [Unreleased]") < CHANGELOG.index(f"## [{__version__}]")


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`(histojax [a-z]+ [^`]+)`", AGENTS))))
def test_a_command_for_programs_parses(command: str) -> None:
    parse(shlex.split(command)[1:])


def test_the_page_for_programs_is_short() -> None:
    assert len(AGENTS.splitlines()) <= 80


def test_the_workflow_runs_every_stage_once() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    job = jobs["stage"]
    assert " ".join(job["strategy"]["matrix"]["stages"]).split() == STAGES
    assert job["steps"][-1] == {"run": 'sudo env "PATH=$PATH" CI=true .ci/run ${{ matrix.stages }}'}


def test_the_checks_before_a_commit_are_those_of_ci() -> None:
    lint = re.search(r"^lint\(\) \{\n(.*?)^\}", (ROOT / ".ci" / "run").read_text(), re.MULTILINE | re.DOTALL)[1]  # type: ignore[index]
    tools = re.findall(r"\.venv/bin/(?!pip)(\S+(?: check| format| build)?)", lint)
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [hook["entry"].removeprefix(".venv/bin/") for hook in repository["hooks"]]
    for tool in tools:
        assert any(entry.startswith(tool) for entry in entries), tool


def test_issue_forms_have_what_github_wants() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 4
    for form in forms:
        content = yaml.safe_load(form.read_text())
        if form.name == "config.yml":
            continue
        assert {"name", "description", "body"} <= set(content)
        fields = [field for field in content["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["attributes"]["label"] for field in fields)
