"""All launch scripts alike: help, what is missing, shells and images that they are for."""

import pathlib
import re
import shutil
import sys
import tomllib

import pytest

from tests.conftest import ROOT
from tests.helpers.launch_scripts import GKE, LAUNCH, LOCAL, SLURM, TPU, WORDS, run_script

GPU_NODES = [
    "--name",
    "run-a",
    "--image",
    "registry/histojax:1",
    "--nodes",
    "2",
    "--gpus",
    "8",
    "--accelerator",
    "h100",
]
TPU_NODES = ["--name", "run-a", "--image", "registry/histojax:1", "--nodes", "4", "--tpus", "4"]
TPU_NODES += ["--accelerator", "tpu-v5-lite-podslice", "--topology", "4x4"]
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
def test_a_shell_reads_it(name: str) -> None:
    path = LAUNCH / name
    assert run_script(["bash", "-n", str(path)]).returncode == 0
    shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"  # of the extra `test`
    done = run_script([str(shellcheck), "-x", "-P", str(ROOT), str(path)])
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*LOCAL, "--", "x"], "-n is missing: how many processes"),
        ([*LOCAL, "-n", "two", "--", "x"], "-n two: a whole number above 0 is needed"),
        ([*LOCAL, "-n", "2"], "what the processes get stands behind --"),
        ([*LOCAL, "-n", "2", "--gpu", "--", "x"], "unknown option --gpu"),
        ([*LOCAL, "-n"], "-n needs a value"),
        ([*LOCAL, "-n", "2", "--python", "/nowhere/python", "--", "x"], "/nowhere/python: no such program"),
        ([*LOCAL, "-n", "2", "--gpus-per-process", "2", "--", "x"], "need 4 GPUs; visible here: 3"),
        ([*TPU, "fly"], "unknown verb 'fly'"),
        ([*TPU, "up", *WORDS], "--name is missing: what the TPU is called. Give --name VALUE, or set TPU_NAME"),
        ([*TPU, "create", "--name", "a", "--zone", "z"], "--type is missing"),
        ([*TPU, "run", "--name", "a", "--zone", "z"], "what the processes get stands behind --"),
        ([*TPU, "delete", "--name", "a", "--zone", "z"], "gcloud is not installed"),
        ([*GKE, "delete", "--name", "a"], "kubectl is not installed"),
        ([*GKE, "render", *WORDS], "--name is missing"),
        ([*GKE, "render", "--name", "Run_A", *WORDS], "small letters, digits and -"),
        ([*GKE, "render", "--name", "a", *WORDS], "--image is missing"),
        ([*GKE, "render", *GPU_NODES, "--tpus", "4", *WORDS], "either --gpus N or --tpus N"),
        ([*GKE, "render", *TPU_NODES[:-2], *WORDS], "--topology is missing"),
        ([*GKE, "render", *GPU_NODES, "--image", "a: [b", *WORDS], "--image 'a: [b': letters, digits"),
        ([*GKE, "render", *GPU_NODES], "what the processes get stands behind --"),
        ([*SLURM, "--config", "x"], "this is a job for sbatch"),
        ([*SLURM, "--dry-run"], "nothing to run"),
    ],
)
def test_what_is_missing_is_named(words: list[str], message: str, tmp_path: pathlib.Path) -> None:
    for name in ("bash", "dirname", "env", "sed"):  # neither gcloud nor kubectl nor nvidia-smi
        (tmp_path / name).symlink_to(shutil.which(name) or "")
    done = run_script(words, PATH=str(tmp_path), CUDA_VISIBLE_DEVICES="0,1,2")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) <= 2  # a sentence (and a warning), not a shell's complaint


def test_nobodys_project_account_or_path_is_written_in() -> None:
    assert len(list(LAUNCH.iterdir())) >= 9
    for path in LAUNCH.iterdir():
        for line in path.read_text().splitlines():
            # A value is only ever a placeholder in capitals, or an option's own.
            assert not re.search(r"(--project|--account|--partition|_PROJECT|_ACCOUNT|--zone)=(?![\"$A-Z])\S", line), (
                line
            )
            assert not re.search(
                r"/home/(?!histojax)|/root/|/Users/|gs://(?!BUCKET|\W|$)|s3://(?!BUCKET|\W|$)", line
            ), line
            assert not re.search(r"(?i)\b\w*(token|secret|password|api_key)\w*\s*=", line), line


@pytest.mark.parametrize("extra", ["cuda", "tpu"])
def test_an_image_is_pinned_holds_no_secret_and_runs_as_nobody(extra: str) -> None:
    lines = [line for line in (LAUNCH / f"Dockerfile.{extra}").read_text().splitlines() if line and line[0] != "#"]
    words = [line.split() for line in lines]
    (base,) = (word[1] for word in words if word[0] == "FROM")
    assert re.fullmatch(r"\S+:\d+\.\d+\.\d+-\S+", base)  # a whole version, never `latest`
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]
    assert f"'.[{extra}]'" in "\n".join(lines)
    copied = [name for word in words if word[0] in ("COPY", "ADD") for name in word[1:-1]]
    assert "." not in copied
    assert all((ROOT / name).exists() for name in copied)
    packages = {name.rstrip("*") for name in ("histojax*", "data_pipelines*", "configs*")}
    assert packages | {"pyproject.toml", project["readme"], *project["license-files"]} <= set(copied)
    users = [word[1] for word in words if word[0] == "USER"]
    assert users == ["1000:1000"]
    assert [word[0] for word in words][-1] == "ENTRYPOINT"
    assert lines[-1] == 'ENTRYPOINT ["python", "-m", "histojax.main"]'  # no shell takes the signals
