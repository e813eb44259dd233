"""Any images with one class each: class folders, a table of paths and labels, or a source of one's own."""

from data_pipelines.image_folder.sources import ImageSource, OwnImage, register

__all__ = ["ImageSource", "OwnImage", "register"]
