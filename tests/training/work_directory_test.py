"""A work directory belongs to one config, also if it is older than some fields of the config."""

import json
import pathlib

import pytest

from histojax.core.errors import RunError
from histojax.training import loop
from tests.helpers.tiny_config import get_config


def test_a_run_from_before_a_field_existed_can_be_resumed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop.checkpoint, "complete_steps", lambda folder: [1])
    config = get_config()
    saved = json.loads(config.to_json())
    del saved["data"]["synthetic"], saved["model"]["module"], saved["train"]["batch_norm"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    loop.check_config(tmp_path, config)
    config.train.batch_norm = "device"
    with pytest.raises(RunError, match=r"train\.batch_norm: saved 'global', now 'device'"):
        loop.check_config(tmp_path, config)
