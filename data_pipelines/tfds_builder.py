"""How TFDS stores a prepared dataset: the name of its config, the order of the images and the size of the files."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from data_pipelines.errors import DataError
from data_pipelines.records import SPLIT

T = TypeVar("T")
Example = tuple[str, dict[str, Any]]

_IMAGES_PER_SHARD = 512  # TFDS holds a shard in memory until it is written: about 250 MB of BreakHis


def config_name(prefix: str, spec: Any, on_bad_image: str) -> str:
    """Name a builder's config after a hash of everything in it.

    Args:
      prefix: begins the name.
      spec: how the images are read, a dataclass of JSON values.
      on_bad_image: `error` or `skip`.

    Raises:
      DataError: unknown policy.
    """
    if on_bad_image not in ("error", "skip"):
        raise DataError(f"data.on_bad_image='{on_bad_image}' is neither 'error' nor 'skip'")
    facts = json.dumps([dataclasses.asdict(spec), on_bad_image], sort_keys=True)
    return f"{prefix}_{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def shuffled_shards(
    items: Iterable[T], name: Callable[[T], str], example: Callable[[T], dict[str, Any]]
) -> dict[str, list[Callable[[], Iterator[Example]]]]:
    """Divide images into the shards that `tfds.core.ShardBasedBuilder` stores.

    The order is that of hashed names, as TFDS's own shuffling would give it. That shuffling is not used because it
    imports TensorFlow as soon as the images of a dataset exceed 1 GB.

    Args:
      items: the images.
      name: returns the unique name of an image.
      example: returns what is stored of an image; called when the image is written.

    Returns:
      For the one split, a function per shard that yields its examples.
    """
    ordered = sorted(items, key=lambda item: hashlib.md5(f"{SPLIT}{name(item)}".encode()).digest())

    def generator(shard: list[T]) -> Callable[[], Iterator[Example]]:
        return lambda: ((name(item), example(item)) for item in shard)

    shards = [ordered[start : start + _IMAGES_PER_SHARD] for start in range(0, len(ordered), _IMAGES_PER_SHARD)]
    return {SPLIT: [generator(shard) for shard in shards]}
