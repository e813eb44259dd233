"""slurm.sbatch: the step that it starts, and when it is requeued; `srun` is simulated."""

import pathlib
import re
import sys
from collections.abc import Mapping

import pytest

from tests.helpers.launch_scripts import LAUNCH, SLURM, run_script


def test_slurm_dry_run(slurm: Mapping[str, str]) -> None:
    words = [*SLURM, "--dry-run", "--config", "c.py", "--workdir", "a b"]
    here = {
        "SLURM_NTASKS": "16",
        "SLURM_TASKS_PER_NODE": "8(x2)",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "6",
    }
    first, second = run_script(words, **slurm | here).stdout.splitlines()
    options = "--kill-on-bad-exit=0 --wait=120 --label --cpus-per-task=6 --gpu-bind=none"
    assert first.strip() == rf"srun {options} {sys.executable} -m histojax.main --config c.py --workdir a\ b"
    assert "on exit code 75, at most 100 times: scontrol requeue" in second
    few = run_script(words, **slurm | here | {"SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_NTASKS": "2"})
    assert "1 processes but 8 GPUs on a node. Use --ntasks-per-node=8 --gpus-per-node=8" in few.stderr
    assert "--gpus-per-task hides GPUs" in run_script(words, **slurm | here | {"SLURM_GPUS_PER_TASK": "1"}).stderr


def test_slurm_options_ask_for_a_signal_and_a_requeue() -> None:
    given = set(re.findall(r"^#SBATCH (.*)", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE))
    assert {"--signal=TERM@120", "--requeue", "--open-mode=append"} <= given


@pytest.mark.parametrize(
    ("how", "more", "code", "requeued"),
    [
        ("again", {}, 75, True),
        ("again", {"SLURM_RESTART_COUNT": "2", "HISTOJAX_MAX_REQUEUES": "2"}, 75, False),
        ("mixed", {}, 75, True),
        ("again", {"JOB_STATE": "COMPLETING"}, 75, False),  # scancel
        ("fail", {}, 1, False),
        ("end", {}, 0, False),
    ],
)
def test_slurm_requeues_after_75_only(
    slurm: Mapping[str, str], program: Mapping[str, str], how: str, more: Mapping[str, str], code: int, requeued: bool
) -> None:
    # The stand-in sets no place in the run, so the small program gets one from the environment.
    place = {"HISTOJAX_COORDINATOR": "x:1", "HISTOJAX_NUM_PROCESSES": "2", "HISTOJAX_MODULE": "small_program"}
    place["HISTOJAX_PROCESS_ID"] = "0" if how == "mixed" else "1"
    done = run_script([*SLURM, how], **slurm | program | place | more)
    assert done.returncode == code, done.stderr
    assert ("called: scontrol requeue" in done.stdout) == requeued


@pytest.mark.devices
def test_slurms_variables_make_two_tasks_one_run(slurm: Mapping[str, str], tmp_path: pathlib.Path) -> None:
    here = {"HISTOJAX_MODULE": "histojax", "HISTOJAX_DATA": str(tmp_path), "HISTOJAX_START_TIMEOUT": "40"}
    done = run_script([*SLURM, "doctor", "--workdir", str(tmp_path)], **slurm | here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("right over 4 devices in 2 processes") == 2
