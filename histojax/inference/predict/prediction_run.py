"""Many images asked of one or several models: read ahead by threads, answered in order, kept as they are answered."""

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
from histojax.evaluation import calibration
from histojax.inference.predict import pixels, prediction_table
from histojax.inference.predict.images import ImageRef, fingerprint
from histojax.inference.predict.journal import Answer, Journal

_log = logging.getLogger(__name__)
_DIHEDRAL = 8  # flips and quarter turns: tissue has no up


class Model(Protocol):
    """What is asked; a `Predictor` is one."""

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def thresholds(self) -> Mapping[str, float] | None: ...  # noqa: D102
    @property
    def decision(self) -> Mapping[str, float] | None: ...  # noqa: D102
    @property
    def temperatures(self) -> Sequence[float] | None: ...  # noqa: D102
    @property
    def image_size(self) -> int: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Images read: by side, `u8 [b, s, s, 3]`, black where there is none; and why there is none, else empty."""

    images: dict[int, np.ndarray]
    reasons: list[str]


def thresholds_of(models: Sequence[Model], given: str = "", *, calibrated: bool = False) -> dict[str, float] | None:
    """At least which probability each label is there, or of two classes the positive one: the mean of what the runs
    chose on validation. None: the most probable class.

    Args:
      models: of one question.
      given: instead, of all labels, as `0.5`, or of some, as `tumor=0.4,stroma=0.6`; of two classes of one.
      calibrated: whether of probabilities that temperatures have calibrated: what was chosen is moved as they are.

    Raises:
      RunError: runs of different classes, or without temperatures where they are asked for; a threshold that is none,
        of an unknown label, or of more than two classes.
    """
    first = models[0]
    for number, other in enumerate(models[1:], start=2):
        if other.classes != first.classes or (other.thresholds is None) != (first.thresholds is None):
            raise RunError(
                f"runs of different questions: {_question(first)} in run 1, {_question(other)} in run {number}; "
                "only probabilities of the same classes have a mean"
            )
    if calibrated and (bare := [number for number, model in enumerate(models, 1) if model.temperatures is None]):
        numbers = ", ".join(map(str, bare))
        raise RunError(f"--calibrated: run {numbers} has no temperature: it had no validation side, or is older")
    if first.thresholds is None:
        return _decision(models, given, calibrated)
    chosen = []
    for model in models:
        own = np.array([[(model.thresholds or {})[name] for name in first.classes]])
        chosen.append(_calibrated(own, model) if calibrated else own)
    cuts = dict(zip(first.classes, np.mean(chosen, axis=(0, 1)).tolist(), strict=True))
    for word in given.split(",") if given else ():
        name, _, number_text = word.rpartition("=")
        try:
            value = float(number_text)
        except ValueError:
            value = float("nan")
        if not 0 <= value <= 1 or (name and name not in cuts):
            labels = ", ".join(cuts)
            raise RunError(f"--threshold={given}: give 0 … 1 for all labels, or LABEL=0.4,… ({labels})")
        cuts |= {name: value} if name else dict.fromkeys(cuts, value)
    return cuts


def _decision(models: Sequence[Model], given: str, calibrated: bool) -> dict[str, float] | None:
    chosen = [model.decision for model in models]
    known = {name for one in chosen if one for name in one}
    if given:
        name, _, number_text = given.rpartition("=")
        positive = name or (known.pop() if len(known) == 1 else "")
        try:
            value = float(number_text)
        except ValueError:
            value = float("nan")
        classes = models[0].classes
        if len(classes) != 2 or positive not in classes or not 0 <= value <= 1:
            asked = f"one class an image is predicted ({', '.join(classes)})"
            raise RunError(f"--threshold={given}: {asked}; of two, CLASS=0.4 decides")
        return {positive: value}
    if len(known) != 1 or None in chosen:
        return None
    (positive,) = known
    own = np.array([[one[positive], 1 - one[positive]] for one in chosen if one])
    if calibrated:
        own = np.concatenate([_calibrated(cut[None], model) for cut, model in zip(own, models, strict=True)])
    return {positive: float(own[:, 0].mean())}


def _calibrated(probabilities: np.ndarray, model: Model) -> np.ndarray:
    return calibration.at_temperatures(probabilities, model.temperatures or ())


def run(
    refs: Sequence[ImageRef], models: Sequence[Model], output: pathlib.Path, *, thresholds: Mapping[str, float] | None,
    dihedral: bool = False, calibrated: bool = False, threads: int = 4, redo: bool = False,
) -> int:  # fmt: skip
    """Asks about every image that is not answered yet and writes the table; returns how many could not be read.

    Answers are kept in `<output>.partial` until the table is there. The same images in the same batches get the same
    answers, so the table of a run that was killed and started again is that of an undisturbed one.

    Args:
      refs: the images.
      models: of one question and one batch size; their mean probability is taken.
      output: .csv or .parquet; failures are listed beside it.
      thresholds: as `thresholds_of` gives them.
      dihedral: whether the mean over the eight flips and quarter turns is taken.
      calibrated: whether each run's probabilities are calibrated by its temperatures, before any mean is taken.
      threads: that read images.
      redo: whether answers and tables that are there are made anew.

    Raises:
      RunError: the table is there already, or was begun in another way, and `redo` is not set.
    """
    prediction_table.check_output(output)
    partial = output.with_name(f"{output.name}.partial")
    if output.exists() and not (redo or partial.exists()):
        raise RunError(f"{output} is there already: choose another --output, or make it anew with --redo")
    output.parent.mkdir(parents=True, exist_ok=True)
    unit = models[0].batch_size
    settings = {
        "images": len(refs),
        "files": fingerprint(refs),
        "runs": [model.digest for model in models],
        "tta": "dihedral" if dihedral else "none",
        "calibrated": calibrated,
        "batch_size": unit,
    }
    with Journal(partial, settings, unit, len(refs), redo=redo) as journal:
        started, before = time.monotonic(), journal.done
        bar = tqdm(total=len(refs), initial=before, unit="image", disable=None, mininterval=1)
        with pixels.quiet(), pixels.Reader() as reader, bar:
            batches = _read(refs[before:], {model.image_size for model in models}, unit, threads, reader)
            try:
                for answers in _ask(batches, models, dihedral, calibrated):
                    journal.append(answers)
                    bar.update(len(answers))
            finally:
                batches.close()
        asked, seconds = journal.done - before, time.monotonic() - started
        _log.info("%d images in %.1f s, %.1f a second", asked, seconds, asked / max(seconds, 1e-9))
        failed = prediction_table.write(output, refs, journal.answers(), models[0].classes, thresholds)
        journal.remove()
    return failed


def _question(model: Model) -> str:
    return f"{'classes' if model.thresholds is None else 'labels'} {', '.join(model.classes)}"


def _read(
    refs: Sequence[ImageRef], sides: Iterable[int], unit: int, threads: int, reader: pixels.Reader
) -> Generator[_Batch, None, None]:
    """Batches in order; threads read at most two ahead. Closing the generator stops them."""
    stop = threading.Event()

    def read(ref: ImageRef, batch: _Batch, place: int) -> None:
        if stop.is_set():
            return
        try:
            image = reader.read(ref)
            for side, images in batch.images.items():
                images[place] = resize(image, side)
        except pixels.UnreadableError as error:
            # Words of a decoder may hold anything.
            batch.reasons[place] = str(error).encode("utf-8", "backslashreplace").decode() or "unreadable"

    pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="images")

    def started() -> Iterator[tuple[_Batch, list[concurrent.futures.Future[None]]]]:
        for start in range(0, len(refs), unit):
            chosen = refs[start : start + unit]
            images = {side: np.zeros((len(chosen), side, side, 3), np.uint8) for side in sides}
            batch = _Batch(images, [""] * len(chosen))
            yield batch, [pool.submit(read, ref, batch, place) for place, ref in enumerate(chosen)]

    try:
        yield from prefetch.finished(started())
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _ask(
    batches: Iterable[_Batch], models: Sequence[Model], dihedral: bool, calibrated: bool
) -> Iterator[list[Answer]]:
    """Of each batch its answers; all models go through the batches side by side, so few are held at a time."""
    views = _DIHEDRAL if dihedral else 1
    mine, *theirs = itertools.tee(batches, len(models) + 1)
    streams = [
        model.stream(_views(copy, model.image_size, dihedral)) for model, copy in zip(models, theirs, strict=True)
    ]
    for batch in mine:
        asked = [
            _calibrated(next(stream), model) if calibrated else next(stream)
            for stream, model in zip(streams, models, strict=True)
            for _ in range(views)
        ]
        mean = np.stack(asked).mean(axis=0, dtype=np.float64)
        yield [reason or row.tolist() for reason, row in zip(batch.reasons, mean, strict=True)]


def _views(batches: Iterable[_Batch], side: int, dihedral: bool) -> Iterator[np.ndarray]:
    """Of each batch its images `u8 [b, s, s, 3]` as they are; else all their flips and quarter turns, one by one."""
    for batch in batches:
        for turns in range(4 if dihedral else 1):
            turned = np.rot90(batch.images[side], turns, axes=(1, 2))
            yield turned
            if dihedral:
                yield turned[:, :, ::-1]
