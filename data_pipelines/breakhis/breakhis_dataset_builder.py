"""TFDS builder of BreakHis: ArrayRecord files with the original PNG bytes. TensorFlow is never imported."""

import dataclasses
import json
import pathlib
from typing import Any

import tensorflow_datasets as tfds

from data_pipelines.archive import unpack
from data_pipelines.breakhis import filenames
from data_pipelines.breakhis.scan import DOWNLOAD, ScannedImage, scan
from data_pipelines.compat import LocalDatasetInfo, data_dir_root
from data_pipelines.errors import DataError
from data_pipelines.images import read_file
from data_pipelines.tfds_builder import shuffled_shards


@dataclasses.dataclass(kw_only=True)
class BreakHisConfig(tfds.core.BuilderConfig):
    """The images to prepare.

    Attributes:
      magnification: `40X`, `100X`, `200X`, `400X` or `all`.
      on_bad_image: `error` or `skip`.
    """

    magnification: str
    on_bad_image: str = "error"


_MAGNIFICATIONS = (*filenames.MAGNIFICATIONS, "all")
_POLICIES = ("error", "skip")


def _config(magnification: str, on_bad_image: str) -> BreakHisConfig:
    name = magnification.lower() + ("_skipping_bad" if on_bad_image == "skip" else "")
    return BreakHisConfig(name=name, magnification=magnification, on_bad_image=on_bad_image)


def config_name(magnification: str, on_bad_image: str = "error") -> str:
    """Return the name of the builder's config; without a name, TFDS would silently use the first config.

    Raises:
      DataError: unknown magnification or policy.
    """
    if magnification not in _MAGNIFICATIONS:
        raise DataError(f"data.magnification='{magnification}' is not one of {', '.join(_MAGNIFICATIONS)}")
    if on_bad_image not in _POLICIES:
        raise DataError(f"data.on_bad_image='{on_bad_image}' is neither 'error' nor 'skip'")
    return _config(magnification, on_bad_image).name


class Builder(tfds.core.ShardBasedBuilder):
    """BreakHis; `manual_dir` is the archive's folder, its extracted tree or a mirror.

    Use `file_format="array_record"`: TFDS's default format needs TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [_config(m, policy) for m in _MAGNIFICATIONS for policy in _POLICIES]  # noqa: RUF012 (required by TFDS)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download {DOWNLOAD} (about 4 GB, CC BY 4.0)."

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return LocalDatasetInfo(
            builder=self,
            description="BreakHis, breast tumour histopathology (Spanhol et al. 2016), original PNG bytes.",
            homepage="https://web.inf.ufpr.br/vri/databases/breast-cancer-histopathological-database-breakhis/",
            license="CC BY 4.0",
            metadata=tfds.core.MetadataDict(),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list(filenames.CLASSES)),
                    "subtype": text,
                    "image_id": text,
                    "patient_id": text,
                    "case_id": text,
                    "magnification": text,
                    "pixel_hash": text,
                }
            ),
        )

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        root = unpack(pathlib.Path(dl_manager.manual_dir), data_dir_root(self) / "extracted")
        config: BreakHisConfig = self.builder_config
        found = scan(root, config.magnification, config.on_bad_image)
        self.info.metadata["scan"] = json.dumps(found.summary)
        return shuffled_shards(found.images, lambda image: image.name.image_id, _example)


def _example(image: ScannedImage) -> dict[str, Any]:
    name = image.name
    return {
        "image": read_file(image.path),
        "label": name.label,
        "subtype": name.subtype,
        "image_id": name.image_id,
        "patient_id": name.patient_id,
        "case_id": name.case_id,
        "magnification": name.magnification,
        "pixel_hash": image.pixel_hash,
    }
