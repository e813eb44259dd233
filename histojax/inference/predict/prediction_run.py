"""Predict many images with one or several models: threads read ahead, results are kept in order as they come."""

import concurrent.futures
import dataclasses
import itertools
import logging
import pathlib
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from tqdm import tqdm

from data_pipelines.pixels import resize
from histojax.core import prefetch
from histojax.core.errors import RunError
from histojax.inference.predict import prediction_table
from histojax.inference.predict.image_reader import ImageReader, UnreadableError, silence_pillow_warnings
from histojax.inference.predict.images import ImageRef, fingerprint
from histojax.inference.predict.partial_results import PartialResults, Prediction
from histojax.inference.predict.thresholds import ThresholdedModel, calibrate

_log = logging.getLogger(__name__)
_NUM_DIHEDRAL_VIEWS = 8  # flips and quarter turns: tissue has no preferred orientation


class Model(ThresholdedModel, Protocol):
    """A model that predicts batches, such as a `Predictor`."""

    @property
    def image_size(self) -> int: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Images that were read.

    Attributes:
      images: by side in pixels, `u8 [b, s, s, 3]`; black where an image could not be read.
      reasons: why an image could not be read; empty where it could.
    """

    images: dict[int, np.ndarray]
    reasons: list[str]


def run(
    refs: Sequence[ImageRef], models: Sequence[Model], output: pathlib.Path, *, thresholds: Mapping[str, float] | None,
    dihedral: bool = False, calibrated: bool = False, threads: int = 4, redo: bool = False,
) -> prediction_table.Summary:  # fmt: skip
    """Predict the images that have no prediction yet, and write the table.

    Predictions are kept in `<output>.partial` until the table is complete. The same images in the same batches get the
    same predictions, so the table of an interrupted and resumed run equals that of an undisturbed one.

    Args:
      refs: the images.
      models: models with the same classes and batch size; their probabilities are averaged.
      output: .csv or .parquet file; unreadable images are listed beside it.
      thresholds: as `combine_thresholds` returns them.
      dihedral: whether to average over the eight flips and quarter turns of each image.
      calibrated: whether to calibrate each model's probabilities by its temperatures, before averaging.
      threads: threads that read images.
      redo: whether to overwrite existing predictions and tables.

    Returns:
      What the table holds.

    Raises:
      RunError: the table exists or was started with different settings, and `redo` is not set; another process is
        writing it; `output` is not a table's file name.
    """
    prediction_table.check_output(output)
    partial = output.with_name(f"{output.name}.partial")
    if output.exists() and not (redo or partial.exists()):
        raise RunError(f"{output} already exists: choose another --output, or overwrite it with --redo")
    output.parent.mkdir(parents=True, exist_ok=True)
    batch_size = models[0].batch_size
    settings = {
        "images": len(refs),
        "files": fingerprint(refs),
        "runs": [model.digest for model in models],
        "tta": "dihedral" if dihedral else "none",
        "calibrated": calibrated,
        "batch_size": batch_size,
    }
    with PartialResults(partial, settings, batch_size, len(refs), redo=redo) as results:
        _predict_remaining(refs, models, results, dihedral=dihedral, calibrated=calibrated, threads=threads)
        summary = prediction_table.write(output, refs, results.read(), models[0].classes, thresholds)
        results.remove()
    return summary


def _predict_remaining(
    refs: Sequence[ImageRef], models: Sequence[Model], results: PartialResults, *, dihedral: bool, calibrated: bool,
    threads: int,
) -> None:  # fmt: skip
    """Predict the images that have no result yet, and log the speed."""
    start_time, first = time.monotonic(), results.num_done
    sides, batch_size = {model.image_size for model in models}, models[0].batch_size
    bar = tqdm(total=len(refs), initial=first, unit="image", disable=None, mininterval=1)
    with silence_pillow_warnings(), ImageReader() as reader, bar:
        batches = _read_batches(refs[first:], sides, batch_size, threads, reader)
        try:
            for predictions in _predict_batches(batches, models, dihedral, calibrated):
                results.append(predictions)
                bar.update(len(predictions))
        finally:
            batches.close()
    count, seconds = results.num_done - first, time.monotonic() - start_time
    _log.info("%d images in %.1f s (%.1f images/s)", count, seconds, count / max(seconds, 1e-9))


def _read_batches(
    refs: Sequence[ImageRef], sides: Iterable[int], batch_size: int, threads: int, reader: ImageReader
) -> Generator[_Batch, None, None]:
    """Yield batches in order, while threads read at most two batches ahead. Closing the generator stops them."""
    stop = threading.Event()

    def read(ref: ImageRef, batch: _Batch, position: int) -> None:
        if stop.is_set():
            return
        try:
            image = reader.read(ref)
            for side, images in batch.images.items():
                images[position] = resize(image, side)
        except UnreadableError as error:
            # A decoder's message may hold anything; it must be encodable, and not empty.
            batch.reasons[position] = str(error).encode("utf-8", "backslashreplace").decode() or "unreadable"

    pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="images")

    def start_batches() -> Iterator[tuple[_Batch, list[concurrent.futures.Future[None]]]]:
        for start in range(0, len(refs), batch_size):
            batch_refs = refs[start : start + batch_size]
            images = {side: np.zeros((len(batch_refs), side, side, 3), np.uint8) for side in sides}
            batch = _Batch(images, [""] * len(batch_refs))
            yield batch, [pool.submit(read, ref, batch, position) for position, ref in enumerate(batch_refs)]

    try:
        yield from prefetch.finished(start_batches())
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _predict_batches(
    batches: Iterable[_Batch], models: Sequence[Model], dihedral: bool, calibrated: bool
) -> Iterator[list[Prediction]]:
    """Yield the predictions of each batch. All models advance together, so few batches are in memory."""
    num_views = _NUM_DIHEDRAL_VIEWS if dihedral else 1
    batches, *copies = itertools.tee(batches, len(models) + 1)
    streams = [
        model.stream(_views(copy, model.image_size, dihedral)) for model, copy in zip(models, copies, strict=True)
    ]
    for batch in batches:
        probabilities = [
            calibrate(next(stream), model) if calibrated else next(stream)
            for stream, model in zip(streams, models, strict=True)
            for _ in range(num_views)
        ]
        mean = np.stack(probabilities).mean(axis=0, dtype=np.float64)
        yield [reason or row.tolist() for reason, row in zip(batch.reasons, mean, strict=True)]


def _views(batches: Iterable[_Batch], side: int, dihedral: bool) -> Iterator[np.ndarray]:
    """Yield the images `u8 [b, s, s, 3]` of each batch: unchanged, or in each of the eight flips and quarter turns."""
    for batch in batches:
        for turns in range(4 if dihedral else 1):
            turned = np.rot90(batch.images[side], turns, axes=(1, 2))
            yield turned
            if dihedral:
                yield turned[:, :, ::-1]
