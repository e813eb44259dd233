"""The README can be followed: its commands parse, its config fields exist, its links lead somewhere."""

import re
import shlex

import pytest

from histojax import main as door
from histojax import models
from histojax.cli import compare, protocols, train
from histojax.cli.main import RootParser, parse
from histojax.training import default_config, experiments
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
COMMANDS = [
    line for line in LINES if re.match(r"(\S*/)?(histojax|python -m histojax(\.main)?) ", line.split("&& ")[-1])
]


def arguments(command: str) -> list[str]:
    """The words behind `histojax` that a command stands for."""
    argv: list[str] = []
    words = shlex.split(command.split("&& ")[-1])
    if words[1:3] == ["-m", "histojax.main"]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(door, "run_command", argv.extend)
            door.main(words[3:])
        return argv
    return words[3:] if words[1:2] == ["-m"] else words[1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = parse(arguments(command))
    monkeypatch.chdir(ROOT)  # paths are relative to the root, as the README's reader stands there
    if getattr(args, "config", None) is not None:
        config = experiments.read(args.config, args.overrides)
        if args.run in (train.run, compare.run, protocols.run):
            default_config.check_data_root(config)


def test_commands_of_every_kind_are_found() -> None:
    verbs = {arguments(command)[0] for command in COMMANDS}
    assert verbs >= set(RootParser().verbs) - {"slide train-tiles", "slide agreement"}
    assert sum("histojax.main" in command for command in COMMANDS) == sum("histojax.main" in line for line in LINES)


def test_every_field_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:data|model|train|loss|optimizer|sharding|split)\.[a-z_.]+\*?)", README))
    named |= set(re.findall(r"--config\.([a-z_.]+)=", README))
    named -= {"split.csv", "model.safetensors"}  # files
    assert len(named) > 10
    for name in named:
        node = default_config.base()
        path = name.removesuffix("=").rstrip("*.").split(".")
        if path[:2] == ["model", "options"] and len(path) > 2:  # a model's own
            assert any(path[2] in models.spec(model).options for model in models.names()), name
            path = path[:2]
        for part in ["data", *path] if path[0] == "split" else path:
            assert part in node, name
            node = node[part]


def test_links_lead_somewhere() -> None:
    headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)", README, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            assert target[1:] in headings
        elif not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_commands_are_marked_for_ci() -> None:
    marked = re.findall(r"<!-- command: (\w+) -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert [name for name, _ in marked] == ["smoke", "test", "ldcsf"]
    # The first two do all their own set-up; the third continues in what the first has created.
    assert all("python3 -m venv" in command and "pip install" in command for _, command in marked[:2])
