"""`histojax models` lists every model, and the help lists the verbs."""

import sys

from histojax import models
from tests.helpers.programs import run

HISTOJAX = [sys.executable, "-m", "histojax"]


def test_help_lists_the_verbs_and_models_lists_the_models() -> None:
    assert "compare" in run([*HISTOJAX, "--help"]).stdout
    done = run([*HISTOJAX, "models"])
    assert done.returncode == 0, done.stderr
    listed = {line.split()[0]: line for line in done.stdout.splitlines()[1:] if line and not line.startswith(" ")}
    assert set(listed) >= set(models.names())
    assert "28.29" in listed["swin_tiny_patch4_window7_224"]
    assert "stage1, stage2, stage3, stage4" in " ".join(done.stdout.split())
