"""Answer many images in batches: threads read ahead, answers are kept in order as they come."""

import concurrent.futures
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

import numpy as np
from tqdm import tqdm

from histojax.core import prefetch
from histojax.inference.model_input import ModelInput
from histojax.inference.predict.image_reader import ImageReader, UnreadableError, silence_pillow_warnings
from histojax.inference.predict.images import ImageRef
from histojax.inference.predict.partial_results import PartialResults, Prediction

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images that were read.

    Attributes:
      images: by input, `u8 [b, s, s, 3]`; black where an image could not be read.
      reasons: why an image could not be read; empty where it could.
      normalised: whether an image had enough tissue for the stain normalisation of every input that has one.
    """

    images: dict[ModelInput, np.ndarray]
    reasons: list[str]
    normalised: list[bool]


def answer_remaining(
    refs: Sequence[ImageRef],
    results: PartialResults,
    answer: Callable[[Iterable[Batch]], Iterator[list[Prediction]]],
    *,
    inputs: Iterable[ModelInput],
    batch_size: int,
    threads: int,
) -> None:
    """Answer the images that have no result yet, keep the answers, and log the speed.

    Args:
      refs: all images.
      results: the answers so far.
      answer: maps batches of images to their answers, in order; it may take a few batches ahead.
      inputs: what models see of an image.
      batch_size: images per batch.
      threads: threads that read images.
    """
    start_time, first = time.monotonic(), results.num_done
    bar = tqdm(total=len(refs), initial=first, unit="image", disable=None, mininterval=1)
    with silence_pillow_warnings(), ImageReader() as reader, bar:
        batches = _read_batches(refs[first:], inputs, batch_size, threads, reader)
        try:
            for answers in answer(batches):
                results.append(answers)
                bar.update(len(answers))
        finally:
            batches.close()
    count, seconds = results.num_done - first, time.monotonic() - start_time
    _log.info("%d images in %.1f s (%.1f images/s)", count, seconds, count / max(seconds, 1e-9))


def _read_batches(
    refs: Sequence[ImageRef], inputs: Iterable[ModelInput], batch_size: int, threads: int, reader: ImageReader
) -> Generator[Batch, None, None]:
    """Yield batches in order, while threads read at most two batches ahead. Closing the generator stops them."""
    stop = threading.Event()

    def read(ref: ImageRef, batch: Batch, position: int) -> None:
        if stop.is_set():
            return
        try:
            image = reader.read(ref)
            for made, images in batch.images.items():
                images[position], normalised = made.of(image)
                batch.normalised[position] &= normalised
        except UnreadableError as error:
            # A decoder's message may hold anything; it must be encodable, and not empty.
            batch.reasons[position] = str(error).encode("utf-8", "backslashreplace").decode() or "unreadable"

    pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="images")

    def start_batches() -> Iterator[tuple[Batch, list[concurrent.futures.Future[None]]]]:
        for start in range(0, len(refs), batch_size):
            batch_refs = refs[start : start + batch_size]
            n = len(batch_refs)
            images = {made: np.zeros((n, made.size, made.size, 3), np.uint8) for made in inputs}
            batch = Batch(images, [""] * n, [True] * n)
            yield batch, [pool.submit(read, ref, batch, position) for position, ref in enumerate(batch_refs)]

    try:
        yield from prefetch.finished(start_batches())
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
