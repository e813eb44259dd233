"""What the README says can be typed: its commands parse, its fields exist, its files and numbers are there."""

import importlib
import inspect
import re
import shlex
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from histojax.models import MODELS
from histojax.training import default_config
from tests.conftest import ROOT
from tests.helpers.programs import run

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
VERBS = [line for line in LINES if line.startswith("histojax ")]
SUBVERBS = [["slide", "train-tiles"], ["slide", "agreement"]]
SUBVERBS += [["bench", "step"], ["bench", "infer"], ["bench", "input"], ["bench", "slide"]]
COMMANDS = [line for line in LINES if "histojax.main" in line]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command.split("histojax.main", 1)[1])
    importlib.import_module("histojax.main")
    known = flags.FlagValues()
    for name in ("workdir", "mode", "checkpoint", "data_root", "image_size", "magnification", "profile"):
        known[name] = flags.FLAGS[name]
    config = config_flags.DEFINE_config_file("config", None, flag_values=known, lock_config=True)
    # Paths are relative to the root, as the README's reader stands there.
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in words]
    monkeypatch.setattr(sys, "argv", ["main", *words])  # where config_flags looks for overridden fields
    known(sys.argv)
    assert (config.value is None) == ("--mode=eval" in words)


@pytest.mark.parametrize("command", VERBS)
def test_a_verb_has_the_options_that_are_shown(command: str) -> None:
    words = shlex.split(command)
    named = words[1:3] if words[1:3] in SUBVERBS else words[1:2]
    help_ = run([sys.executable, "-m", "histojax", *named, "--help"]).stdout
    assert help_, f"there is no verb {' '.join(named)}"
    for word in words[1 + len(named) :]:
        option = word.partition("=")[0]
        if option.startswith("--") and not option.startswith("--config."):
            name = option.removeprefix("--")  # absl shows a flag that is yes or no as --[no]name
            assert re.search(rf"--(\[no\])?{name}\b", help_), f"{' '.join(named)} has no {option}"


def test_every_field_that_is_named_exists() -> None:
    named = set(re.findall(r"`((?:data|model|train|loss|optimizer|sharding|split)\.[a-z_.]+\*?)", README))
    named |= set(re.findall(r"--config\.([a-z_.]+)=", README))
    named -= {"split.csv", "model.safetensors"}  # files
    assert len(named) > 10
    for name in named:
        node = default_config.base()
        path = name.removesuffix("=").rstrip("*.").split(".")
        if path[:2] == ["model", "options"] and len(path) > 2:  # a model's own
            assert any(path[2] in inspect.signature(build).parameters for build in MODELS.values()), name
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
    # The first two do all their own set-up; the third goes on in what the first has made.
    assert all("python3 -m venv" in command and "pip install" in command for _, command in marked[:2])
