"""Common to all launch scripts: help, error messages, no private values, container images."""

import pathlib
import re
import shutil
import tomllib

import pytest

from tests.conftest import ROOT
from tests.helpers.launch_scripts import GKE, GPU_NODES, LAUNCH, LOCAL, SLURM, TPU, TPU_NODES, WORDS, run_script

SCRIPTS = ("local.sh", "tpu_pod.sh", "gke.sh", "slurm.sbatch")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_every_option_and_setting(name: str) -> None:
    done = run_script(["bash", str(LAUNCH / name), "--help"])
    assert done.returncode == 0, done.stderr
    source = (LAUNCH / name).read_text()
    options = set(re.findall(r"^    (?:-h \| )?(--[a-z-]+)\)", source, re.MULTILINE))
    variables = set(re.findall(r"\b(?:TPU|GKE)_[A-Z_]+\b", source)) if name != "slurm.sbatch" else set()
    variables |= set(re.findall(r"\$\{(HISTOJAX_\w+):-", source))
    for word in options | variables:
        assert word in done.stdout, word
    assert "set -e" not in done.stdout
    assert "SBATCH --" not in done.stdout


@pytest.mark.parametrize("name", ["functions.sh", *SCRIPTS])
def test_every_script_parses(name: str) -> None:
    done = run_script(["bash", "-n", str(LAUNCH / name)])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*LOCAL, "--", "x"], "-n is missing: the number of processes"),
        ([*LOCAL, "-n", "two", "--", "x"], "-n two: must be a whole number above 0"),
        ([*LOCAL, "-n", "2"], "put the arguments of the processes after --"),
        ([*LOCAL, "-n", "2", "--gpu", "--", "x"], "unknown option --gpu"),
        ([*LOCAL, "-n"], "-n needs a value"),
        ([*LOCAL, "-n", "2", "--python", "/nowhere/python", "--", "x"], "/nowhere/python: no such program"),
        ([*LOCAL, "-n", "2", "--gpus-per-process", "2", "--", "x"], "need 4 GPUs; visible: 3"),
        ([*TPU, "fly"], "unknown verb 'fly'"),
        ([*TPU, "up", *WORDS], "--name is missing: the name of the TPU. Pass --name VALUE or set TPU_NAME"),
        ([*TPU, "create", "--name", "a", "--zone", "z"], "--type is missing"),
        ([*TPU, "run", "--name", "a", "--zone", "z"], "put the arguments of the processes after --"),
        ([*TPU, "delete", "--name", "a", "--zone", "z"], "gcloud is not installed"),
        ([*GKE, "delete", "--name", "a"], "kubectl is not installed"),
        ([*GKE, "render", *WORDS], "--name is missing"),
        ([*GKE, "render", "--name", "Run_A", *WORDS], "use lower-case letters, digits and -"),
        ([*GKE, "render", "--name", "a", *WORDS], "--image is missing"),
        ([*GKE, "render", *GPU_NODES, "--tpus", "4", *WORDS], "either --gpus N or --tpus N"),
        ([*GKE, "render", *TPU_NODES[:-2], *WORDS], "--topology is missing"),
        ([*GKE, "render", *GPU_NODES, "--image", "a: [b", *WORDS], "--image 'a: [b': use letters, digits"),
        ([*GKE, "render", *GPU_NODES], "put the arguments of the processes after --"),
        ([*SLURM, "--config", "x"], "submit this file with sbatch"),
        ([*SLURM, "--dry-run"], "nothing to run"),
    ],
)
def test_user_errors_have_a_message(words: list[str], message: str, tmp_path: pathlib.Path) -> None:
    for name in ("bash", "dirname", "env", "sed"):  # neither gcloud nor kubectl nor nvidia-smi
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    done = run_script(words, PATH=str(tmp_path), CUDA_VISIBLE_DEVICES="0,1,2")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 2  # one message, perhaps with a warning, and no error of the shell


def test_scripts_contain_no_private_project_account_or_path() -> None:
    assert len(list(LAUNCH.iterdir())) >= 9
    for path in LAUNCH.iterdir():
        for line in path.read_text().splitlines():
            # A value is always a placeholder in capitals or a variable.
            assert not re.search(r"(--project|--account|--partition|_PROJECT|_ACCOUNT|--zone)=(?![\"$A-Z])\S", line), (
                line
            )
            assert not re.search(
                r"/home/(?!histojax)|/root/|/Users/|gs://(?!BUCKET|\W|$)|s3://(?!BUCKET|\W|$)", line
            ), line
            assert not re.search(r"(?i)\b\w*(token|secret|password|api_key)\w*\s*=", line), line


@pytest.mark.parametrize("extra", ["cuda", "tpu"])
def test_an_image_is_pinned_copies_named_paths_only_and_runs_as_a_user(extra: str) -> None:
    lines = [line for line in (LAUNCH / f"Dockerfile.{extra}").read_text().splitlines() if line and line[0] != "#"]
    words = [line.split() for line in lines]
    (base,) = (word[1] for word in words if word[0] == "FROM")
    assert re.fullmatch(r"\S+:\d+\.\d+\.\d+-\S+", base)  # a full version, never `latest`
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]
    assert f"'.[{extra}]'" in "\n".join(lines)
    copied = [name for word in words if word[0] in ("COPY", "ADD") for name in word[1:-1]]
    assert "." not in copied
    assert all((ROOT / name).exists() for name in copied)
    packages = {name.rstrip("*") for name in ("histojax*", "data_pipelines*", "configs*")}
    assert packages | {"pyproject.toml", project["readme"]} <= set(copied)
    for pattern in project["license-files"]:
        licenses = [path.relative_to(ROOT) for path in ROOT.glob(pattern)]
        assert licenses, pattern
        assert all(path.parts[0] in copied for path in licenses)
    users = [word[1] for word in words if word[0] == "USER"]
    assert users == ["1000:1000"]
    assert [word[0] for word in words][-1] == "ENTRYPOINT"
    assert lines[-1] == 'ENTRYPOINT ["python", "-m", "histojax.main"]'  # no shell intercepts the signals
