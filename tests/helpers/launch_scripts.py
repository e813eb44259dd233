"""Run a launch script as a user would."""

import os
import pathlib
import subprocess
import sys

from tests.conftest import ROOT

LAUNCH = ROOT / "launch"
WORDS = ["--", "--config", "c.py", "--workdir", "/gcs/b/it's a run"]
LOCAL = [str(LAUNCH / "local.sh"), "--python", sys.executable]
SLURM = ["bash", str(LAUNCH / "slurm.sbatch")]
TPU = [str(LAUNCH / "tpu_pod.sh")]
GKE = [str(LAUNCH / "gke.sh")]
GPU_NODES = ["--name", "run-a", "--image", "registry/histojax:1", "--nodes", "2", "--gpus", "8"]
GPU_NODES += ["--accelerator", "h100"]
TPU_NODES = ["--name", "run-a", "--image", "registry/histojax:1", "--nodes", "4", "--tpus", "4"]
TPU_NODES += ["--accelerator", "tpu-v5-lite-podslice", "--topology", "4x4"]
_PREFIXES = ("HISTOJAX_", "SLURM_", "TPU_", "GKE_", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES")


def run_script(words: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script with only the given histojax settings in its environment."""
    known = {key: value for key, value in os.environ.items() if not key.startswith(_PREFIXES)}
    return subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=ROOT, env=known | environment)


def executable(path: pathlib.Path, text: str) -> None:
    """Write an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
