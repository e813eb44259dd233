"""The test images of a run, decoded, shifted and resized batch by batch."""

import concurrent.futures
import threading
from collections.abc import Iterator

import numpy as np
import pandas as pd

from data_pipelines import stain
from data_pipelines.pixels import decode
from data_pipelines.prepare import open_images
from data_pipelines.splits import Split
from histojax.core import prefetch
from histojax.core.errors import RunError
from histojax.data.sources import Dataset
from histojax.evaluation import predictions
from histojax.inference.model_input import ModelInput
from histojax.inference.predictor import Predictor
from histojax.studies.robustness.shifts import Image, ImageFacts, Shift
from histojax.training import evaluate

_KEPT_BYTES = 2**28  # of decoded images; the others are decoded again for every shift
SIDE = "test"


class TestImages:
    """The test images of a run; safe for use by several threads.

    Attributes:
      dataset: the run's images.
      indices: positions of the test images in it.
      mpp: µm per pixel of each test image; None: unknown.
    """

    __test__ = False  # for pytest, which takes classes of this name for tests

    def __init__(self, dataset: Dataset, indices: np.ndarray, mpp: list[float] | None):
        self.dataset, self.indices, self.mpp = dataset, indices, mpp
        self._images = open_images(dataset.prepared.directory)
        self._hashes = dataset.records.take(indices).column("pixel_hash").tolist()
        self._decoded: dict[int, Image] = {}
        self._stains: dict[int, stain.Stains | None] = {}
        self._free = _KEPT_BYTES
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.indices)

    def table(self, probabilities: np.ndarray, shift: Shift | None) -> pd.DataFrame:
        """Make the table of predictions of all images.

        Args:
          probabilities: `[n, k]`.
          shift: of the images that were predicted.

        Returns:
          A valid table, with `pixel_hash` of the image as it is on disk, and `unchanged`: whether the shift left it as
          it is, because it shows too little tissue to find its stains.
        """
        rows = self.dataset.records.take(self.indices)
        facts = {
            name: rows.column(name) for name in ("patient_id", "magnification", "case_id", "slide_id", "source_id")
        }
        labels = self.dataset.labels[self.indices]
        table = predictions.make_table(
            rows.column("image_id"), labels, probabilities, self.dataset.classes, split=SIDE, **facts
        )
        stained = shift is not None and shift.kind == "stain"
        unchanged = [stained and self._stains[i] is None for i in range(len(self))]
        return table.assign(pixel_hash=self._hashes, unchanged=unchanged)

    def shifted(
        self, shift: Shift | None, strength: float, *, made: ModelInput, batch_size: int, threads: int
    ) -> Iterator[np.ndarray]:
        """Yield all images in order, shifted and then made the model's input, in batches `u8 [b, s, s, 3]`.

        Args:
          shift: None: the images as they are.
          strength: of the shift.
          made: resizes images, and normalises their stains where the run does.
          batch_size: images per batch.
          threads: threads that decode and shift.
        """

        def fill(batch: np.ndarray, start: int, row: int) -> None:
            image = self._read(start + row)
            if shift is not None:
                image = shift.apply(image, strength, self._facts(start + row, image, shift))
            batch[row] = made.of(image)[0]

        with concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="shifts") as pool:

            def start_batches() -> Iterator[tuple[np.ndarray, list[concurrent.futures.Future[None]]]]:
                for start in range(0, len(self), batch_size):
                    batch = np.zeros((min(batch_size, len(self) - start), made.size, made.size, 3), np.uint8)
                    yield batch, [pool.submit(fill, batch, start, row) for row in range(len(batch))]

            yield from prefetch.finished(start_batches())

    def _read(self, i: int) -> Image:
        if (kept := self._decoded.get(i)) is not None:
            return kept
        image = decode(self._images[int(self.indices[i])]["image"])
        with self._lock:
            if i not in self._decoded and image.nbytes <= self._free:
                self._free -= image.nbytes
                self._decoded[i] = image
        return image

    def _facts(self, i: int, image: Image, shift: Shift) -> ImageFacts:
        if shift.kind == "stain" and i not in self._stains:
            self._stains[i] = stain.find_stains(image)
        mpp = None if self.mpp is None else self.mpp[i]
        return ImageFacts(int(self._hashes[i], 16), self._stains.get(i), mpp)


def open_test_images(predictor: Predictor, data_root: str, mpp: float | None) -> tuple[TestImages, Split]:
    """Open the test images of a run, and only those.

    Args:
      predictor: the run's model.
      data_root: folder of the images; empty: the run's.
      mpp: µm per pixel of all images; None: as the images' table or the run's config states it.

    Raises:
      RunError: the images are missing or not the run's, an image has several labels, or µm per pixel is known of some
        images only.
      DataError: the images are damaged.
    """
    meta, config = predictor.trained.meta, predictor.trained.config
    if config.data.task == "multilabel":
        raise RunError(
            f"{predictor.trained.path}: its images have several labels each; robustness is measured of models with one "
            "class per image"
        )
    saved = Split.from_json(meta["split"])
    dataset, split = evaluate.open_run_images(config, meta["classes"], saved, data_root, "")
    if split.hash != saved.hash or dataset.hash != meta["data"].get("hash", dataset.hash):
        raise RunError(
            f"{config.data.root}: not the images that the run was tested on; name their folder with --data_root=PATH"
        )
    indices = split.indices(SIDE)
    return TestImages(dataset, indices, _microns(dataset, indices, config.data.get("mpp", 0.0), mpp)), split


def _microns(dataset: Dataset, indices: np.ndarray, configured: float, given: float | None) -> list[float] | None:
    """Find the µm per pixel of each image: as given, else as the images' table says, else as the config says."""
    if given is not None:
        return [given] * len(indices)
    cells = dataset.records.take(indices).column("mpp").tolist()
    if known := [cell for cell in cells if cell]:
        if len(known) < len(cells):
            raise RunError(
                f"{len(cells) - len(known)} of {len(cells)} test images have no µm per pixel: fill the column mpp of "
                "their table, or state one value for all with --mpp"
            )
        return [float(cell) for cell in cells]
    return [configured] * len(indices) if configured else None
