"""Locating a file of weights: on disk, or downloaded once from the Hugging Face Hub."""

from __future__ import annotations

import pathlib

from histojax.core import extras
from histojax.core.directories import expand_user
from histojax.core.errors import RunError

SAFETENSORS = "model.safetensors"
_HUB = "hf:"
_HUB_FILES = (SAFETENSORS, "pytorch_model.bin")


def check(source: str) -> None:
    """Check a source as far as possible without the network.

    Args:
      source: a path, or `hf:OWNER/NAME[/FILE]`.

    Raises:
      RunError: no such file, a malformed name, or huggingface_hub is not installed.
    """
    if not source.startswith(_HUB):
        if not expand_user(source).is_file():
            raise RunError(f"model.pretrained={source}: no such file")
        return
    owner, name, _ = _parts(source)
    if not owner or not name:
        raise RunError(f"model.pretrained={source} is not hf:OWNER/NAME or hf:OWNER/NAME/FILE")
    extras.require("hub", f"model.pretrained={source}")


def locate(source: str) -> pathlib.Path:
    """Return the path of a file of weights, downloading it if it is on the hub and not in the cache.

    Args:
      source: a path, or `hf:OWNER/NAME[/FILE]`. Without FILE it is `model.safetensors`, or `pytorch_model.bin` if the
        repository does not have that.

    Raises:
      RunError: as for `check`, or the download failed.
    """
    check(source)
    if not source.startswith(_HUB):
        return expand_user(source)
    import huggingface_hub

    owner, name, file = _parts(source)
    candidates = [file] if file else list(_HUB_FILES)
    for candidate in candidates:
        offline = _connection_error(f"{owner}/{name}", candidate)
        try:
            path = huggingface_hub.hf_hub_download(f"{owner}/{name}", candidate, local_files_only=bool(offline))
            return pathlib.Path(path)
        except huggingface_hub.errors.EntryNotFoundError as error:
            # A file missing from the cache raises a subclass of this error: then the connection is missing.
            if candidate != candidates[-1] and not isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError):
                continue
            raise _download_error(source, candidate, offline or _first_line(error)) from error
        except Exception as error:  # the network, its proxies and the hub raise many kinds of errors
            raise _download_error(source, candidate, _first_line(error)) from error
    raise AssertionError(candidates)


def _connection_error(repository: str, file: str) -> str:
    """Ask the hub for a file once, and return why it does not answer; "" if it does.

    `hf_hub_download` would ask six times, for more than 20 seconds, before it looks into the cache.
    """
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(repository, file)
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT)
    except huggingface_hub.errors.HfHubHTTPError:
        return ""  # an answer, which the download explains
    except Exception as error:  # of the network
        return f"no connection to the hub: {_first_line(error)}"
    return ""


def _parts(source: str) -> tuple[str, str, str]:
    owner, _, rest = source.removeprefix(_HUB).partition("/")
    name, _, file = rest.partition("/")
    return owner, name, file


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _download_error(source: str, file: str, reason: str) -> RunError:
    return RunError(
        f"model.pretrained={source}: {file} could not be downloaded and is not in the cache ({reason}). Offline, name "
        "a file on this machine; for a repository behind a licence, accept the licence on its page and set HF_TOKEN"
    )
