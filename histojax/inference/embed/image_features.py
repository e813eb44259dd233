"""Features of many images: computed in batches, resumable, and written as one file at the end."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from histojax.core.files import atomic_write
from histojax.evaluation import feature_files
from histojax.inference.embed.embedder import Embedder, decode, encode, fingerprint
from histojax.inference.embed.image_facts import Facts
from histojax.inference.predict import images
from histojax.inference.predict.image_batches import Batch, answer_remaining
from histojax.inference.predict.images import ImageRef
from histojax.inference.predict.partial_results import PartialResults, Prediction, partial_path
from histojax.inference.predict.prediction_table import failures_path, failures_writer


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a file of features holds.

    Attributes:
      images: images with features.
      failed: images that could not be read.
      patients: known patients of the images with features.
      labels: known labels, and the number of images with each.
      not_normalised: images with too little tissue for the network's stain normalisation.
    """

    images: int
    failed: int
    patients: int
    labels: dict[str, int]
    not_normalised: int


def run(
    refs: Sequence[ImageRef],
    ids: Sequence[str],
    facts: Sequence[Facts],
    embedder: Embedder,
    output: pathlib.Path,
    *,
    threads: int = 4,
    redo: bool = False,
) -> Summary:
    """Compute the features of the images that have none yet, and write the file.

    Features are kept in `<output>.partial` until the file is complete. The same images in the same batches get the same
    features, so the file of an interrupted and resumed run equals that of an undisturbed one.

    Args:
      refs: the images.
      ids: their names in the file.
      facts: what is known about each.
      embedder: the network.
      output: .parquet or .npz file; unreadable images are listed beside it.
      threads: threads that read images.
      redo: whether to overwrite existing results.

    Raises:
      RunError: the file exists or was started with different settings, and `redo` is not set; another process is
        writing it; or `output` has another suffix.
    """
    feature_files.check_path(output, "--output")
    partial = partial_path(output, redo=redo)
    settings = {
        "images": len(refs),
        "files": images.fingerprint(refs),
        "weights": embedder.digest,
        "layer": embedder.layer,
        "image_size": embedder.image_size,
        "preprocessing": fingerprint(embedder),
        "batch_size": embedder.batch_size,
    }
    with PartialResults(partial, settings, embedder.batch_size, len(refs), redo=redo) as results:
        answer_remaining(
            refs,
            results,
            lambda batches: _embed_batches(batches, embedder),
            inputs=[embedder.input],
            batch_size=embedder.batch_size,
            threads=threads,
        )
        summary = _write(output, ids, facts, embedder, results.read())
        results.remove()
    return summary


def _embed_batches(batches: Iterable[Batch], embedder: Embedder) -> Iterator[list[Prediction]]:
    """Yield for each image a list of its features, float32 in base 64, and whether its stains were normalised.

    For an image that could not be read, yield the reason.
    """
    read: list[Batch] = []

    def pixels() -> Iterator[np.ndarray]:
        for batch in batches:
            read.append(dataclasses.replace(batch, images={}))
            yield batch.images[embedder.input]

    for rows in embedder.stream(pixels()):
        batch = read.pop(0)
        answers = [[encode(row), normalised] for row, normalised in zip(rows, batch.normalised, strict=True)]
        yield [reason or answer for reason, answer in zip(batch.reasons, answers, strict=True)]


def _write(
    output: pathlib.Path, ids: Sequence[str], facts: Sequence[Facts], embedder: Embedder, results: Iterable[Prediction]
) -> Summary:
    """Write the file of features, and a table of the unreadable images if there are any."""
    rows: list[dict[str, str | None]] = []
    failures: list[tuple[str, str]] = []
    not_normalised = 0
    # The features lie in a file without a name, which the system deletes, so that memory stays flat.
    with tempfile.TemporaryFile(dir=output.parent) as file:
        features = np.memmap(file, "<f4", "w+", shape=(max(len(ids), 1), embedder.width))
        for name, known, result in zip(ids, facts, results, strict=True):
            if isinstance(result, str):
                failures.append((name, result))
            else:
                features[len(rows)] = decode(result[0])
                rows.append({"image_id": name, **known})
                not_normalised += not result[-1]  # an earlier version kept the features alone
        table = pd.DataFrame(rows, columns=["image_id", *feature_files.FACTS], dtype=object)
        made = feature_files.FeatureTable(table, features[: len(rows)], embedder.metadata)
        feature_files.write(output, made)
    _write_failures(output, failures)
    labels = table["label"].dropna().value_counts().sort_index()
    counts = {str(k): int(v) for k, v in labels.items()}
    return Summary(len(rows), len(failures), table["patient_id"].nunique(), counts, not_normalised)


def _write_failures(output: pathlib.Path, failures: Sequence[tuple[str, str]]) -> None:
    path = failures_path(output)
    path.unlink(missing_ok=True)
    if failures:
        with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            failures_writer(file)(failures)
