"""Write the README.md of an exported model as a model card: what it is, its results, and how to load it."""

import pathlib
from collections.abc import Mapping
from typing import Any

from histojax.core.files import read_json
from histojax.evaluation import terminal
from histojax.evaluation.report.model_card import LIMITS, code
from histojax.evaluation.report.report_json import USE
from histojax.inference.export.exportable import ExportableModel
from histojax.training import checkpoint


def readme(model: ExportableModel, *, head: str, loading: str, checked: str) -> str:
    """Return the README as Markdown.

    Args:
      model: the model.
      head: the text before the title: the YAML block of Hugging Face, or nothing.
      loading: how to load the files beside it, as Markdown.
      checked: a sentence about the comparison with the trained model.
    """
    predictor = model.predictor
    trained = predictor.trained
    meta, size = trained.meta, predictor.image_size
    data = meta["data"]
    thresholds = predictor.thresholds or {}
    classes = [code(name) + (f" (from {thresholds[name]:.4f})" if thresholds else "") for name in predictor.classes]
    kind = "labels, any number per image" if thresholds else "classes, one per image"
    scale = f", {trained.config.data.mpp:g} µm/px" if trained.config.data.get("mpp", 0.0) else ""
    return f"""\
{head}# {model.architecture}: {", ".join(map(code, predictor.classes))}

**{USE}**

* {len(classes)} {kind}: {", ".join(classes)}.
* Input: {size}×{size} pixels, RGB{_tiles(data, scale)}. Values are scaled to 0 … 1, then normalised by mean
  {_numbers(trained.config.data.mean)} and standard deviation {_numbers(trained.config.data.std)}.
* Data: {_without_folders(model, data["description"])}; {meta["train_images"]} of them for training{_synthetic(data)}.
* Protocol: {meta["split"]["protocol"]}; split {meta["split"]["hash"]}.
* Initial weights: {_without_folders(model, meta["pretrained"] or "random")}.
* Checkpoint {predictor.digest}, after {meta["step"]} updates; exported in float32.
* {checked}

## Results

{_results(model)}

## Loading

{loading}
## Limits

{LIMITS}"""


def _results(model: ExportableModel) -> str:
    """Return the run's results with their intervals, as the terminal shows them, if they are of this checkpoint."""
    trained = model.predictor.trained
    run = checkpoint.run_of(trained.path)
    results = None if run is None else read_json(run / "results.json")
    if results is None:
        return "There are no results beside the checkpoint."
    evaluated = (results.get("checkpoint_step"), results.get("split_hash"))
    if evaluated != (trained.meta["step"], trained.meta["split"]["hash"]):
        return "The results of the run belong to another checkpoint."
    # Four backticks: the table contains no such fence.
    return f"````\n{_without_folders(model, terminal.table(results)).rstrip()}\n````"


def _without_folders(model: ExportableModel, text: str) -> str:
    """Remove the folders of the machine that trained the model from a text."""
    config = model.predictor.trained.config
    for path in (config.data.root, config.model.pretrained):
        if "/" in path and not path.startswith("hf:"):
            text = text.replace(path, pathlib.PurePath(path).name)
    return text


def _synthetic(data: Mapping[str, Any]) -> str:
    return "; **the images are synthetic**" if data.get("synthetic") else ""


def _tiles(data: Mapping[str, Any], scale: str) -> str:
    pixels = data.get("tile_pixels")
    return f", of images of {pixels}×{pixels} pixels{scale}" if pixels else scale


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)
