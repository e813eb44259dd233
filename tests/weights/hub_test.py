"""`hf:OWNER/NAME` from a hub: a real download over HTTP, from the cache offline, and every refusal with its message."""

import contextlib
import http.server
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.helpers import twins, warm_start

import timm.models.vision_transformer  # isort: skip  (after twins, which makes torchvision importable)

pytestmark = [pytest.mark.parity, pytest.mark.slow]
COMMIT = "1" * 40
CONFIG = """
from histojax.training import default_config

def get_config(variant=""):
    config = default_config.base()
    config.model.name = "vit"
    config.model.options = dict(image_size=32, patch=8, embed_dim=24, depth=1, heads=2)
    return config
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub: /OWNER/NAME/resolve/REVISION/FILE, with its headers."""

    files: dict[str, bytes]
    asked: list[str]

    def _answer(self) -> bytes | None:
        owner_name, _, rest = self.path.removeprefix("/").partition("/resolve/")
        key = f"{owner_name}/{rest.partition('/')[2]}"
        self.asked.append(f"{self.command} {key}")
        if key.startswith("gated/"):
            self._refuse(403, "GatedRepo", "Access to this model is restricted")
        elif key not in self.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        else:
            self.send_response(200)
            self.send_header("ETag", '"0123456789abcdef"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(self.files[key])))
            self.end_headers()
            return self.files[key]
        return None

    def _refuse(self, code: int, name: str, message: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", name)
        self.send_header("X-Error-Message", message)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        if body := self._answer():
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Silence."""


@pytest.fixture
def module() -> torch.nn.Module:
    made = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=1, num_heads=2, num_classes=3
    )
    return twins.randomised(made)


@contextlib.contextmanager
def serving(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    handler = type("Handler", (Hub,), {"files": files, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler.asked
        finally:
            server.shutdown()
            thread.join()


def convert(tmp_path: pathlib.Path, source: str, endpoint: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "small.py").write_text(CONFIG)
    words = [sys.executable, "-m", "histojax", "convert", f"--config={tmp_path / 'small.py'}", "--num_classes=3"]
    words += [f"--weights={source}", f"--output={tmp_path / 'out'}"]
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    kept = {k: v for k, v in os.environ.items() if k.lower() not in ("http_proxy", "https_proxy", "all_proxy")}
    return warm_start.run(words, environment=kept | settings | environment)


def bytes_of(module: torch.nn.Module, path: pathlib.Path) -> bytes:
    if path.suffix == ".bin":
        torch.save(module.state_dict(), path)
    else:
        import safetensors.torch

        safetensors.torch.save_file(module.state_dict(), path)
    return path.read_bytes()


def test_a_file_is_downloaded_once(module: torch.nn.Module, tmp_path: pathlib.Path) -> None:
    files = {"lab/vit/model.safetensors": bytes_of(module, tmp_path / "w.safetensors")}
    with serving(files) as (endpoint, asked):
        done = convert(tmp_path, "hf:lab/vit", endpoint)
        assert done.returncode == 0, done.stderr
        assert "timm/DINOv2 names" in done.stdout
        assert asked.count("GET lab/vit/model.safetensors") == 1
        assert convert(tmp_path, "hf:lab/vit", endpoint).returncode == 0
        assert asked.count("GET lab/vit/model.safetensors") == 1
    # The hub is gone, the cache is not.
    done = convert(tmp_path, "hf:lab/vit", endpoint, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    from histojax import weights

    arrays = weights.inspect(tmp_path / "out" / "model.safetensors").arrays
    wanted = module.state_dict()["blocks.0.mlp.fc1.weight"].numpy().T
    np.testing.assert_array_equal(arrays["blocks.0.mlp.fc1.kernel"], wanted)


def test_a_repository_without_safetensors_and_a_file_by_name(module: torch.nn.Module, tmp_path: pathlib.Path) -> None:
    contents = bytes_of(module, tmp_path / "w.bin")
    files = {"lab/old/pytorch_model.bin": contents, "lab/old/epoch9.pth": contents}
    with serving(files) as (endpoint, asked):
        done = convert(tmp_path, "hf:lab/old", endpoint)
        assert done.returncode == 0, done.stderr
        assert next(line for line in asked if "lab/" in line) == "HEAD lab/old/model.safetensors"
        done = convert(tmp_path, "hf:lab/old/epoch9.pth", endpoint)
        assert done.returncode == 0, done.stderr
        assert "HEAD lab/old/epoch9.pth" in asked  # of the same contents: none has to be sent


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf:lab/none", "the repository has no model.safetensors and no model.safetensors.index.json and no"),
        ("hf:gated/uni", "for a repository behind a licence, accept the licence on its page and set HF_TOKEN"),
        ("hf:lab", "is not hf:OWNER/NAME or hf:OWNER/NAME/FILE"),
    ],
)
def test_refusals_of_the_hub_are_reported(source: str, said: str, tmp_path: pathlib.Path) -> None:
    with serving({}) as (endpoint, _):
        done = convert(tmp_path, source, endpoint)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_no_hub_and_no_cache(tmp_path: pathlib.Path) -> None:
    done = convert(tmp_path, "hf:lab/vit", "http://127.0.0.1:9", HF_HUB_ETAG_TIMEOUT="2")
    assert done.returncode == 1
    assert "could not be downloaded and is not in the cache (no connection to the hub: " in done.stderr
    assert "Retrying" not in done.stderr  # asked once, not for 20 seconds
    assert "Traceback" not in done.stderr
