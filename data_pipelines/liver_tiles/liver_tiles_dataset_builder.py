"""TFDS builder of multi-label tiles: ArrayRecord files. TensorFlow is never imported."""

import dataclasses
import json
import pathlib
from typing import Any

import tensorflow_datasets as tfds

from data_pipelines.compat import LocalDatasetInfo
from data_pipelines.liver_tiles.scan import Tile, scan, stored_bytes
from data_pipelines.liver_tiles.spec import TilesSpec
from data_pipelines.records import FIELDS, label_set
from data_pipelines.tfds_builder import config_name, shuffled_shards


@dataclasses.dataclass(kw_only=True)
class LiverTilesConfig(tfds.core.BuilderConfig):
    """How to read a root.

    Attributes:
      tiles: labels, layout, cutting.
      on_bad_image: `error` or `skip`.
    """

    tiles: TilesSpec
    on_bad_image: str = "error"


def config(tiles: TilesSpec, on_bad_image: str = "error") -> LiverTilesConfig:
    """Return the builder's config; its name is a hash of everything in it.

    Raises:
      DataError: unknown policy.
    """
    name = config_name("tiles", tiles, on_bad_image)
    return LiverTilesConfig(name=name, tiles=tiles, on_bad_image=on_bad_image)


class Builder(tfds.core.ShardBasedBuilder):
    """Tiles with any number of labels; `manual_dir` is the folder that holds them.

    Use `config=config(TilesSpec(…))` and `file_format="array_record"`: TFDS's default format needs TensorFlow.
    """

    VERSION = tfds.core.Version("1.1.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "The paper's tiles are not published: use your own, see README.md beside this file."

    def _info(self) -> tfds.core.DatasetInfo:
        return LocalDatasetInfo(
            builder=self,
            description="Tiles with any number of labels each (layouts: see data_pipelines/liver_tiles/README.md).",
            metadata=tfds.core.MetadataDict(),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),  # the file's own bytes
                    "labels": tfds.features.Sequence(tfds.features.Text()),
                    **{field: tfds.features.Text() for field in FIELDS if field != "label"},
                }
            ),
        )

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        settings: LiverTilesConfig = self.builder_config
        found = scan(pathlib.Path(dl_manager.manual_dir), settings.tiles, settings.on_bad_image)
        self.info.metadata["scan"] = json.dumps(found.summary)
        return shuffled_shards(found.tiles, lambda tile: tile.record.image_id, _example)


def _example(tile: Tile) -> dict[str, Any]:
    fields = dataclasses.asdict(tile.record)
    labels = list(label_set(fields.pop("label")))
    return {"image": stored_bytes(tile), "labels": labels} | fields
