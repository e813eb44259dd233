"""From a prepared dataset to batches: order, rows of each process, workers, padding and mask.

The training stream is a pure function of (seed, position): shuffling and augmentation are keyed by the position in the
global stream, each process takes the rows of a global batch that its devices hold, and batches are formed last.
Therefore neither workers, nor threads, nor the number of processes change the stream, and the number of images consumed
is enough to resume it.
"""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np

from data_pipelines.errors import BadImageError, DataError
from data_pipelines.pixels import decode, resize
from data_pipelines.stain import StainNormalizer
from histojax.data import batches, workers
from histojax.data.batches import Batch, ThreadedBatches
from histojax.data.compat import SelectRows, Source
from histojax.data.image_source import ImageSource
from histojax.data.sources import Dataset
from histojax.data.transforms import UPRIGHT, AugmentSpec, Orientation, augment_except_last_turn

SAMPLINGS = ("natural", "balanced")
ON_BAD_RECORD = ("error", "mask")
_GREY = 128
_CACHE_BYTES = 1 << 30  # 7,000 images of 224×224
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LoaderSpec:
    """How batches are made, from fields of `config.data` and `config.train`.

    Attributes:
      batch_size: images per global batch, over all processes.
      image_size: height and width of the model's input in pixels.
      seed: random seed of order and augmentation.
      sampling: `natural`, or `balanced`: every class equally often.
      threads: decoding threads in this process if there are no workers; more threads than cores only cost time.
      workers: processes that make whole batches; 0: threads of this process decode.
      on_bad_record: in training: `error`, or `mask`: log an image that cannot be read or decoded, and mask it out.
      rows: positions in the global batch of the images that this process loads, ascending; None: all.
      stain: brings every image to the colours of a reference; None: images stay as they are. It works on the pixels
        that a cache holds, so that runs with and without it share the cache.
    """

    batch_size: int
    image_size: int
    seed: int
    sampling: str = "natural"
    threads: int = 4
    workers: int = 0
    on_bad_record: str = "error"
    rows: tuple[int, ...] | None = None
    stain: StainNormalizer | None = None

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise DataError(f"data.sampling='{self.sampling}' is not one of {', '.join(SAMPLINGS)}")
        if self.on_bad_record not in ON_BAD_RECORD:
            raise DataError(f"data.on_bad_record='{self.on_bad_record}' is not one of {', '.join(ON_BAD_RECORD)}")

    @property
    def local_batch_size(self) -> int:
        """Images of a batch that this process loads."""
        return self.batch_size if self.rows is None else len(self.rows)


class _Augment(grain.transforms.RandomMap):
    def __init__(self, loader: LoaderSpec, spec: AugmentSpec):
        self._size, self._stain, self._spec = loader.image_size, loader.stain, spec
        self._mask_bad = loader.on_bad_record == "mask"

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        try:
            if element["mask"] or not self._mask_bad:
                pixels = pixels_of(element)
                image, orientation = augment_except_last_turn(pixels, self._size, self._spec, rng, self._stain)
                return _with_pixels(element, image, orientation)
        except DataError as error:
            if not self._mask_bad:
                raise
            _log.warning("skipping unreadable image: %s", error)
        grey = np.full((self._size, self._size, 3), _GREY, np.uint8)
        return _with_pixels(element | {"mask": np.bool_(False)}, grey)


class _Resize(grain.transforms.Map):
    def __init__(self, loader: LoaderSpec):
        self._size, self._stain = loader.image_size, loader.stain

    def map(self, element: dict[str, Any]) -> dict[str, Any]:
        image = resize(pixels_of(element), self._size)
        if self._stain is None:
            return _with_pixels(element, image)
        image, normalised = self._stain.apply(image)
        return _with_pixels(element, image) | {"normalised": np.bool_(normalised)}


def pixels_of(element: Mapping[str, Any]) -> np.ndarray:
    """Return the pixels, `u8 [h, w, 3]`, of an element of an `ImageSource`; decode them if the dataset is not cached.

    Raises:
      DataError: the image cannot be decoded.
    """
    image = element["image"]
    try:
        return decode(image) if isinstance(image, bytes) else image
    except BadImageError as error:
        raise DataError(f"image {element['name']} of the prepared dataset: {error}; prepare the data again") from error


def _with_pixels(element: Mapping[str, Any], image: np.ndarray, orientation: Orientation = UPRIGHT) -> dict[str, Any]:
    others = {key: value for key, value in element.items() if key not in ("image", "name")}
    return {"image": image, batches.ORIENTATION: orientation} | others


def train_batches(
    dataset: Dataset, indices: np.ndarray, spec: LoaderSpec, augmentation: AugmentSpec, *, start: int = 0
) -> "grain.DatasetIterator[Batch] | ThreadedBatches":
    """Return an endless stream of augmented batches; closing it ends its workers or threads.

    Args:
      dataset: the prepared dataset.
      indices: positions in it of the training images.
      spec: how batches are made.
      augmentation: random changes of the images.
      start: batches already consumed; the stream resumes after them.

    Yields:
      `image: u8 [b, s, s, 3]`, `label: i32 [b]` or `labels: f32 [b, k]`, `mask: bool [b]`, `index: i64 [b]`; b is the
      number of rows of this process.

    Raises:
      DataError: balanced sampling of a class without images, or of multi-label images; or too little shared memory for
        the workers.
    """
    if len(indices) < spec.batch_size:
        _log.warning(
            "train.batch_size=%d is larger than the training set: each batch holds its %d images more than once; use "
            "--config.train.batch_size=%d or less",
            spec.batch_size,
            len(indices),
            len(indices),
        )
    if spec.sampling == "balanced" and dataset.multilabel:
        raise DataError("data.sampling=balanced needs one class per image; use loss.positive_weights=balanced instead")
    if spec.sampling == "balanced":
        by_class = [indices[dataset.labels[indices] == k] for k in range(len(dataset.classes))]
        for name, members in zip(dataset.classes, by_class, strict=True):
            if not len(members):
                raise DataError(f"data.sampling=balanced: no training image of class '{name}'")
        streams = [_shuffled(dataset, members, spec, spec.seed + k) for k, members in enumerate(by_class)]
        stream = grain.MapDataset.mix(streams, weights=[1 / len(streams)] * len(streams))
    else:
        stream = _shuffled(dataset, indices, spec, spec.seed)
    stream = stream.seed(spec.seed).random_map(_Augment(spec, augmentation))
    return _iterate(_local_rows(stream[start * spec.batch_size :], spec), spec, spec.workers)


def eval_batches(dataset: Dataset, indices: np.ndarray, spec: LoaderSpec) -> Iterator[Batch]:
    """Yield every image exactly once, in order; the last batch is padded, and its padding masked out.

    Yields:
      Batches as `train_batches` does, with `spec.stain` also `normalised: bool [b]`, which is False where an image has
      too little tissue and is as it was; all processes yield the same number of batches.
    """
    padded = np.full(-(-len(indices) // spec.batch_size) * spec.batch_size, -1, dtype=np.int64)
    padded[: len(indices)] = indices
    stream = Source(_source(dataset, padded)).map(_Resize(spec))
    with contextlib.closing(_iterate(_local_rows(stream, spec), spec, 0)) as made:
        yield from made


class CachedBatches:
    """`eval_batches` that stay in memory after the first complete pass: validation sees the same images every epoch.

    Args:
      dataset: as for `eval_batches`.
      indices: as for `eval_batches`.
      spec: as for `eval_batches`.
    """

    def __init__(self, dataset: Dataset, indices: np.ndarray, spec: LoaderSpec):
        self._arguments = dataset, indices, spec
        # Decoding the validation side in every epoch would take longer than a GPU needs to train one.
        self._fits = len(indices) * spec.image_size**2 * 3 <= _CACHE_BYTES
        self._batches: list[Batch] = []

    def __iter__(self) -> Iterator[Batch]:
        if self._batches:
            yield from self._batches
            return
        read = []
        for batch in eval_batches(*self._arguments):
            if self._fits:
                read.append(batch)
            yield batch
        self._batches = read


def _local_rows(stream: grain.MapDataset, spec: LoaderSpec) -> grain.MapDataset:
    """Keep the rows of each global batch that this process loads."""
    return stream if spec.rows is None else SelectRows(stream, spec.batch_size, spec.rows)


def _source(dataset: Dataset, indices: np.ndarray, mask_bad: bool = False) -> ImageSource:
    names = [record.image_id for record in dataset.records]
    return ImageSource(dataset.prepared.directory, indices, dataset.labels, names, mask_bad, dataset.cached)


def _shuffled(dataset: Dataset, indices: np.ndarray, spec: LoaderSpec, seed: int) -> grain.MapDataset:
    source = _source(dataset, indices, spec.on_bad_record == "mask")
    return Source(source).seed(seed).shuffle().repeat(None)


def _iterate(
    stream: grain.MapDataset, spec: LoaderSpec, count: int
) -> "grain.DatasetIterator[Batch] | ThreadedBatches":
    """Form batches from a stream of images, with `count` workers."""
    size = spec.local_batch_size
    if not count:
        return ThreadedBatches(stream, size, spec.image_size, spec.threads)
    join = functools.partial(batches.join, image_size=spec.image_size)
    made = stream.batch(size, drop_remainder=True, batch_fn=join)
    return workers.iterate(made, count, size * spec.image_size**2 * 3)
