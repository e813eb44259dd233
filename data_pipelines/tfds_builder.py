"""How TFDS stores a prepared dataset: in which order, in files of how many images, and asking nobody."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import tensorflow_datasets as tfds

from data_pipelines.records import SPLIT

T = TypeVar("T")
Example = tuple[str, dict[str, Any]]

_IMAGES_A_SHARD = 512  # TFDS keeps a shard in memory until it is written: some 250 MB of BreakHis


class Info(tfds.core.DatasetInfo):
    """What TFDS knows of a dataset: what stands here."""

    def initialize_from_bucket(self) -> None:
        """Nothing: TFDS would ask Google for one of that name, and leave an empty folder in /tmp if there is none."""


def in_shards(
    items: Iterable[T], name: Callable[[T], str], example: Callable[[T], dict[str, Any]]
) -> dict[str, list[Callable[[], Iterator[Example]]]]:
    """What `tfds.core.ShardBasedBuilder` stores: for each shard, a function that yields its examples.

    The order is that of hashed names, as TFDS's own shuffling would have it. That one is not used because it imports
    TensorFlow as soon as the images of a dataset come to more than 1 GB.

    Args:
      items: the images.
      name: an image's unique one.
      example: what is stored of an image; called when its turn comes.
    """
    ordered = sorted(items, key=lambda item: hashlib.md5(f"{SPLIT}{name(item)}".encode()).digest())

    def generator(shard: list[T]) -> Callable[[], Iterator[Example]]:
        return lambda: ((name(item), example(item)) for item in shard)

    shards = [ordered[start : start + _IMAGES_A_SHARD] for start in range(0, len(ordered), _IMAGES_A_SHARD)]
    return {SPLIT: [generator(shard) for shard in shards]}
