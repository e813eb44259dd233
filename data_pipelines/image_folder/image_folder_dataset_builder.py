"""TFDS builder of images with one class each: ArrayRecord files. TensorFlow is never imported."""

import dataclasses
import json
import pathlib
from typing import Any

import tensorflow_datasets as tfds

from data_pipelines.compat import LocalDatasetInfo
from data_pipelines.image_folder.scan import ScannedImage, scan
from data_pipelines.image_folder.spec import FolderSpec
from data_pipelines.images import storable
from data_pipelines.records import FIELDS
from data_pipelines.tfds_builder import config_name, shuffled_shards


@dataclasses.dataclass(kw_only=True)
class ImageFolderConfig(tfds.core.BuilderConfig):
    """How to read a root.

    Attributes:
      images: table, columns and groups.
      on_bad_image: `error` or `skip`.
    """

    images: FolderSpec
    on_bad_image: str = "error"


def config(images: FolderSpec, on_bad_image: str = "error") -> ImageFolderConfig:
    """Return the builder's config; its name is a hash of everything in it.

    Raises:
      DataError: unknown policy.
    """
    name = config_name("images", images, on_bad_image)
    return ImageFolderConfig(name=name, images=images, on_bad_image=on_bad_image)


class Builder(tfds.core.ShardBasedBuilder):
    """Images with one class each; `manual_dir` is the folder that holds them.

    Use `config=config(FolderSpec(…))` and `file_format="array_record"`: TFDS's default format needs TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Use images of your own, see README.md beside this file."

    def _info(self) -> tfds.core.DatasetInfo:
        return LocalDatasetInfo(
            builder=self,
            description="Images with one class each (layouts: see data_pipelines/image_folder/README.md).",
            metadata=tfds.core.MetadataDict(),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),  # the file's own bytes if PNG or JPEG
                    **{field: tfds.features.Text() for field in FIELDS},
                }
            ),
        )

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        settings: ImageFolderConfig = self.builder_config
        found = scan(pathlib.Path(dl_manager.manual_dir), settings.images, settings.on_bad_image)
        self.info.metadata["scan"] = json.dumps(found.summary)
        return shuffled_shards(found.images, lambda image: image.record.image_id, _example)


def _example(image: ScannedImage) -> dict[str, Any]:
    return {"image": storable(image.read())} | dataclasses.asdict(image.record)
