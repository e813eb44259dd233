"""A small program for the launch scripts to start, and simulated schedulers.

There is no SLURM and no cloud. Simulated `srun` and `gcloud` commands start the same processes on this machine, so that
the scripts themselves really run.
"""

import os
import pathlib
import sys
from collections.abc import Mapping

import pytest

from tests.helpers.launch_scripts import executable

PROGRAM = """
import os, signal, sys, time

index, how = int(os.environ["HISTOJAX_PROCESS_ID"]), sys.argv[1]
print("process", index, "of", os.environ["HISTOJAX_NUM_PROCESSES"], "at", os.environ["HISTOJAX_COORDINATOR"],
      "sees", os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("XLA_FLAGS"), flush=True)
print("words", sys.argv[1:], flush=True)
if how == "stop":
    def stop(*_):
        print("saved", index, flush=True)
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    print("ready", index, flush=True)
    time.sleep(60)
if how == "fail":
    if index == 1:
        sys.exit("error: images.csv: no such file")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
if how == "again":
    sys.exit(75 * (index == 1))
if how == "twice":
    before = os.path.exists("before")
    open("before", "w").close()
    sys.exit(0 if before else 75)
if how == "mixed":
    time.sleep(0.4 * index)
    sys.exit((75, 3)[index])
"""

# Simulates srun: skips the options and sets the variables that SLURM sets for each task.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_STEP_NODELIST=localhost
pids=() worst=0
for ((i = 0; i < SLURM_NTASKS; i++)); do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & pids+=($!); done
for pid in "${pids[@]}"; do code=0; wait "$pid" || code=$?; ((code <= worst)) || worst=$code; done
exit "$worst"
"""

# Simulates gcloud: a TPU is a folder with one folder per host, in which the commands of that host run.
GCLOUD = """#!/usr/bin/env bash
echo "$*" >> "$CLOUD/calls"
kind=$3 verb=$4 name=$5
shift 5
for word in "$@"; do
  case $word in
    --worker=*) worker=${word#*=} ;;
    --command=*) command=${word#*=} ;;
  esac
done
case $kind/$verb in
  */create) mkdir -p "$CLOUD/$name/0" "$CLOUD/$name/1" && echo READY > "$CLOUD/$name/state" ;;
  */describe) cat "$CLOUD/$name/state" 2> /dev/null || { echo "ERROR: NOT_FOUND" >&2 && exit 1; } ;;
  */delete) rm -r "$CLOUD/$name" ;;
  tpu-vm/scp) for host in 0 1; do cp "$name" "$CLOUD/${1%%:*}/$host/${1#*:}"; done ;;
  tpu-vm/ssh)
    for host in 0 1; do
      [[ $worker == all || $worker == "$host" ]] || continue
      (cd "$CLOUD/$name/$host" && HOME=$PWD HISTOJAX_PROCESS_ID=$host bash -c "$command") || exit
    done
    ;;
esac
"""
UV = """#!/usr/bin/env bash
[[ $1 == venv ]] || exit 0
mkdir -p .venv/bin
printf '#!/bin/sh\\nexec %s "$@"\\n' "$REAL_PYTHON" > .venv/bin/python
chmod +x .venv/bin/python
"""


@pytest.fixture
def program(tmp_path: pathlib.Path) -> Mapping[str, str]:
    """The environment in which `python -m small_program` is a process of a run."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "small_program.py").write_text(PROGRAM)
    (tmp_path / "tmp").mkdir()
    return {"PYTHONPATH": str(folder), "TMPDIR": str(tmp_path / "tmp")}


@pytest.fixture
def slurm(tmp_path: pathlib.Path) -> Mapping[str, str]:
    """The environment of a batch script with two tasks on one node."""
    bin_ = tmp_path / "slurm"
    executable(bin_ / "srun", SRUN)
    for name in ("scontrol", "scancel"):
        executable(bin_ / name, f'#!/bin/sh\necho "called: {name} $*"\n')
    executable(bin_ / "squeue", "#!/bin/sh\necho ${JOB_STATE:-RUNNING}\n")
    given = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2"}
    return given | {"PATH": f"{bin_}:{os.environ['PATH']}", "HISTOJAX_PYTHON": sys.executable}


@pytest.fixture
def cloud(tmp_path: pathlib.Path, program: Mapping[str, str]) -> Mapping[str, str]:
    """The environment of tpu_pod.sh with the simulated gcloud and uv."""
    bin_ = tmp_path / "cloud_bin"
    executable(bin_ / "gcloud", GCLOUD)
    executable(bin_ / "uv", UV)
    (tmp_path / "cloud").mkdir()
    given = {"PATH": f"{bin_}:{os.environ['PATH']}", "CLOUD": str(tmp_path / "cloud"), "REAL_PYTHON": sys.executable}
    given |= {"HISTOJAX_COORDINATOR": "x:1", "HISTOJAX_NUM_PROCESSES": "2", "TPU_MODULE": "small_program"}
    return given | program
