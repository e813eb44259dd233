"""Addresses in buckets on the command line: what a command reads is copied first, what it writes is copied at the end.

So every command takes `gs://` and `s3://` wherever it takes a path, and none of them needs to know.
"""

import contextlib
from collections.abc import Iterator, Sequence

from histojax.storage import places

# Flags that name what a command writes; all other words name what it reads.
_OUTPUTS = ("--output", "--workdir", "--static", "--json", "--write_folds")
# These open their work directory themselves: several processes share it, and it changes while they run; or they only
# look whether it can be written.
_OWN_WORKDIR = ("train", "eval", "doctor")


@contextlib.contextmanager
def with_local_paths(words: Sequence[str]) -> Iterator[list[str]]:
    """Provide a command line whose addresses are replaced by local paths.

    Values of config fields stay: those that may be an address are read where they are used.

    Args:
      words: behind `histojax`.

    Raises:
      BucketError: a bucket cannot be read or written.
    """
    with contextlib.ExitStack() as stack:
        yield [_local(word, flag, words[0], stack) for word, flag in _with_flags(words)]


def _with_flags(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each word with the flag whose value it is or has, empty for a positional argument."""
    before = ""
    for word in words:
        flag = word.partition("=")[0] if word.startswith("--") else before
        yield word, flag
        before = word if word.startswith("--") and "=" not in word else ""


def _local(word: str, flag: str, command: str, stack: contextlib.ExitStack) -> str:
    """Return a word with its addresses replaced."""
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    parts = value.split(",")
    if not any(map(places.is_address, parts)) or flag.startswith("--config"):
        return word
    if flag == "--workdir" and command in _OWN_WORKDIR:
        return word
    if flag in _OUTPUTS:
        local = str(stack.enter_context(places.written(value)))
    else:
        local = ",".join(str(places.local(part)) if places.is_address(part) else part for part in parts)
    return f"{name}{equals}{local}"
