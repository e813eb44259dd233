"""Predict many images with one or several models, and write the table."""

import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from histojax.evaluation.conformal import SetRule
from histojax.inference.model_input import ModelInput
from histojax.inference.predict import prediction_table
from histojax.inference.predict.image_batches import Batch, answer_remaining
from histojax.inference.predict.images import ImageRef, fingerprint
from histojax.inference.predict.partial_results import PartialResults, Prediction, partial_path
from histojax.inference.predict.thresholds import ThresholdedModel, calibrate

_NUM_DIHEDRAL_VIEWS = 8  # flips and quarter turns: tissue has no preferred orientation


class Model(ThresholdedModel, Protocol):
    """A model that predicts batches, such as a `Predictor`."""

    @property
    def input(self) -> ModelInput: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]: ...  # noqa: D102


class Scorer(Protocol):
    """Further columns for each image, such as a `NoveltyScorer`."""

    @property
    def columns(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    def stream(self, batches: Iterable[np.ndarray]) -> Iterator[list[list[Any]]]: ...  # noqa: D102


def run(
    refs: Sequence[ImageRef], models: Sequence[Model], output: pathlib.Path, *, thresholds: Mapping[str, float] | None,
    dihedral: bool = False, calibrated: bool = False, sets: SetRule | None = None, abstain: bool = False,
    threads: int = 4, redo: bool = False, novelty: Scorer | None = None,
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
      sets: prediction sets to add to the table; None: none.
      abstain: whether to add the answers of these sets.
      threads: threads that read images.
      redo: whether to overwrite existing predictions and tables.
      novelty: how unlike the training images of the first model each image is; None: no such columns.

    Returns:
      What the table holds.

    Raises:
      RunError: the table exists or was started with different settings, and `redo` is not set; another process is
        writing it; `output` is not a table's file name.
    """
    prediction_table.check_output(output)
    partial = partial_path(output, redo=redo)
    batch_size = models[0].batch_size
    settings = {
        "images": len(refs),
        "files": fingerprint(refs),
        "runs": [model.digest for model in models],
        "tta": "dihedral" if dihedral else "none",
        "calibrated": calibrated,
        "batch_size": batch_size,
        **({} if novelty is None else {"novelty": novelty.digest}),  # tables begun before novelty existed resume
    }
    with PartialResults(partial, settings, batch_size, len(refs), redo=redo) as results:
        answer_remaining(
            refs,
            results,
            lambda batches: _predict_batches(batches, models, dihedral, calibrated, novelty),
            inputs={model.input for model in models},
            batch_size=batch_size,
            threads=threads,
        )
        further = [prediction_table.NORMALISED] if any(model.input.stain is not None for model in models) else []
        further += () if novelty is None else novelty.columns
        summary = prediction_table.write(
            output, refs, results.read(), models[0].classes, thresholds, further, sets=sets, abstain=abstain
        )
        results.remove()
    return summary


def _predict_batches(
    batches: Iterable[Batch], models: Sequence[Model], dihedral: bool, calibrated: bool, novelty: Scorer | None
) -> Iterator[list[Prediction]]:
    """Yield the predictions of each batch. All models advance together, so few batches are in memory.

    Where a model normalises stains, the last number of a prediction is 1 for an image that was normalised, else 0.
    """
    stains = any(model.input.stain is not None for model in models)
    num_views = _NUM_DIHEDRAL_VIEWS if dihedral else 1
    batches, *copies = itertools.tee(batches, len(models) + 1)
    further: Iterator[list[list[Any]]] = itertools.repeat([[]] * models[0].batch_size)
    if novelty:
        batches, unchanged = itertools.tee(batches)
        further = novelty.stream(_views(unchanged, models[0].input, False))
    streams = [model.stream(_views(copy, model.input, dihedral)) for model, copy in zip(models, copies, strict=True)]
    for batch in batches:
        probabilities = [
            calibrate(next(stream), model) if calibrated else next(stream)
            for stream, model in zip(streams, models, strict=True)
            for _ in range(num_views)
        ]
        mean = np.stack(probabilities).mean(axis=0, dtype=np.float64)
        if stains:
            mean = np.column_stack([mean, batch.normalised])
        answers = zip(batch.reasons, mean, next(further), strict=False)
        yield [reason or [*row.tolist(), *more] for reason, row, more in answers]


def _views(batches: Iterable[Batch], made: ModelInput, dihedral: bool) -> Iterator[np.ndarray]:
    """Yield the images `u8 [b, s, s, 3]` of each batch: unchanged, or in each of the eight flips and quarter turns."""
    for batch in batches:
        for turns in range(4 if dihedral else 1):
            turned = np.rot90(batch.images[made], turns, axes=(1, 2))
            yield turned
            if dihedral:
                yield turned[:, :, ::-1]
