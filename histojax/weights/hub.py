"""Locating a file of weights: on disk, or downloaded once from the Hugging Face Hub."""

from __future__ import annotations

import pathlib

from histojax.core import extras
from histojax.core.directories import expand_user
from histojax.core.errors import RunError
from histojax.weights import shards
from histojax.weights.errors import Problem

SAFETENSORS = "model.safetensors"
_HUB = "hf:"
_HUB_FILES = (SAFETENSORS, f"{SAFETENSORS}{shards.SUFFIX}", "pytorch_model.bin", f"pytorch_model.bin{shards.SUFFIX}")


def check(source: str) -> None:
    """Check a source as far as possible without the network.

    Args:
      source: a path, or `hf:OWNER/NAME[@REVISION][/FILE]`.

    Raises:
      RunError: no such file, a malformed name, or huggingface_hub is not installed.
    """
    if not source.startswith(_HUB):
        if not expand_user(source).is_file():
            raise RunError(f"model.pretrained={source}: no such file")
        return
    owner, name, revision, _ = _parts(source)
    if not owner or not name or revision == "":
        raise RunError(
            f"model.pretrained={source} is not hf:OWNER/NAME or hf:OWNER/NAME/FILE, with @REVISION after NAME if needed"
        )
    extras.require("hub", f"model.pretrained={source}")


def locate(source: str) -> pathlib.Path:
    """Return the path of a file of weights, downloading it if it is on the hub and not in the cache.

    Args:
      source: a path, or `hf:OWNER/NAME[@REVISION][/FILE]`. REVISION is a branch, a tag or a commit. Without FILE it is
        the first of `model.safetensors`, its index, `pytorch_model.bin` and its index that the repository has. The
        files that an index names are downloaded with it.

    Raises:
      RunError: as for `check`, or the download failed.
    """
    check(source)
    if not source.startswith(_HUB):
        return expand_user(source)
    owner, name, revision, file = _parts(source)
    repository = f"{owner}/{name}"
    candidates = [file] if file else list(_HUB_FILES)
    offline = _connection_error(repository, candidates[0], revision)
    for candidate in candidates:
        if (path := _download(source, repository, candidate, revision, offline)) is not None:
            break
    else:
        raise _download_error(source, candidates[0], offline or f"the repository has no {' and no '.join(candidates)}")
    if shards.is_index(path):
        try:
            parts = shards.read_index(path)
        except Problem as error:
            raise RunError(f"model.pretrained={source}: {path.name}: {error}") from error
        folder = file.rpartition("/")[0]
        for part in parts:
            name = f"{folder}/{part}".lstrip("/")
            if _download(source, repository, name, revision, offline) is None:
                raise _download_error(source, name, offline or "the repository lacks this file, which its index names")
    return path


def _download(source: str, repository: str, file: str, revision: str | None, offline: str) -> pathlib.Path | None:
    """Return the path of a file in the cache, downloading it if it is not there.

    None: the repository, or offline the cache, does not have the file.

    Args:
      source: as given by the user, for messages.
      repository: OWNER/NAME.
      file: its name in the repository.
      revision: branch, tag or commit; None: the newest.
      offline: why the hub does not answer; empty if it does.

    Raises:
      RunError: the download failed.
    """
    import huggingface_hub

    try:
        path = huggingface_hub.hf_hub_download(repository, file, revision=revision, local_files_only=bool(offline))
        return pathlib.Path(path)
    except huggingface_hub.errors.EntryNotFoundError as error:
        # A file that the cache lacks raises a subclass of this error.
        missing = offline or not isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError)
        if missing:
            return None
        raise _download_error(source, file, _first_line(error)) from error
    except Exception as error:  # the network, its proxies and the hub raise many kinds of errors
        raise _download_error(source, file, _first_line(error)) from error


def _connection_error(repository: str, file: str, revision: str | None) -> str:
    """Ask the hub for a file once, and return why it does not answer; "" if it does.

    `hf_hub_download` would ask six times, for more than 20 seconds, before it looks into the cache.
    """
    import huggingface_hub

    url = huggingface_hub.hf_hub_url(repository, file, revision=revision)
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT)
    except huggingface_hub.errors.HfHubHTTPError:
        return ""  # an answer, which the download explains
    except Exception as error:  # of the network
        return f"no connection to the hub: {_first_line(error)}"
    return ""


def _parts(source: str) -> tuple[str, str, str | None, str]:
    """Return owner, name, revision (None: not given) and file of `hf:OWNER/NAME[@REVISION][/FILE]`."""
    owner, _, rest = source.removeprefix(_HUB).partition("/")
    name, _, file = rest.partition("/")
    name, at, revision = name.partition("@")
    return owner, name, revision if at else None, file


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _download_error(source: str, file: str, reason: str) -> RunError:
    return RunError(
        f"model.pretrained={source}: {file} could not be downloaded and is not in the cache ({reason}). Offline, name "
        "a file on this machine; for a repository behind a licence, accept the licence on its page and set HF_TOKEN"
    )
