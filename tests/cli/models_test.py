"""`histojax models` lists every model with its size and feature maps."""

import sys

from histojax import models
from tests.helpers.programs import run


def test_the_command_lists_the_models() -> None:
    done = run([sys.executable, "-m", "histojax", "models"])
    assert done.returncode == 0, done.stderr
    blocks: dict[str, str] = {}  # a model's line, and the lines that continue its cells
    for line in done.stdout.splitlines()[1:]:
        name = line.split()[0] if not line.startswith(" ") else list(blocks)[-1]
        blocks[name] = blocks.get(name, "") + line
    assert list(blocks) == list(models.names())
    swin = blocks["swin_tiny_patch4_window7_224"]
    assert "28.29" in swin
    assert all(name in swin for name in ("stage1", "stage2", "stage3", "stage4"))
