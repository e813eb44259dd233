"""Reading the result of a scan of multi-label tiles."""

from data_pipelines.liver_tiles.scan import Scan


def labels_of(found: Scan) -> dict[str, str]:
    """Return the labels of each tile, joined by "+", by image_id."""
    return {tile.record.image_id: tile.record.label for tile in found.tiles}
