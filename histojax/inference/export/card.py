"""The README.md of an exported model, as a model card: what it is, what it was measured at, how it is loaded."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from histojax.evaluation import terminal
from histojax.evaluation.report.model_card import LIMITS, code
from histojax.evaluation.report.report_json import USE
from histojax.inference.export.function import Portable
from histojax.training import checkpoint


def card(portable: Portable, *, head: str, loading: str, checked: str) -> str:
    """The card as Markdown.

    Args:
      portable: the model.
      head: what stands before the title: Hugging Face's block of YAML, or nothing.
      loading: how the files beside it are loaded, as Markdown.
      checked: what was compared, a sentence.
    """
    predictor = portable.predictor
    trained = predictor.trained
    meta, size = trained.meta, predictor.image_size
    data = meta["data"]
    cuts = predictor.thresholds or {}
    classes = [code(name) + (f" (from {cuts[name]:.4f} on)" if cuts else "") for name in predictor.classes]
    kind = "labels, any number an image" if cuts else "classes, one an image"
    scale = f", {trained.config.data.mpp:g} µm/px" if trained.config.data.get("mpp", 0.0) else ""
    return f"""\
{head}# {portable.architecture}: {", ".join(map(code, predictor.classes))}

**{USE}**

* {len(classes)} {kind}: {", ".join(classes)}.
* Input: {size}×{size} pixels, RGB{_tiles(data, scale)}. Normalised, of values in 0 … 1, by mean
  {_numbers(trained.config.data.mean)} and standard deviation {_numbers(trained.config.data.std)}.
* Data: {_local(portable, data["description"])}, of which {meta["train_images"]} were trained on{_synthetic(data)}.
* Protocol: {meta["split"]["protocol"]}; split {meta["split"]["hash"]}.
* Initial weights: {_local(portable, meta["pretrained"] or "random")}.
* Checkpoint {predictor.digest}, after {meta["step"]} updates; exported in float32.
* {checked}

## Results

{_results(portable)}

## Loading

{loading}
## Limits

{LIMITS}"""


def _results(portable: Portable) -> str:
    """The run's results as its terminal showed them, with their intervals; only those of this very checkpoint."""
    trained = portable.predictor.trained
    run = checkpoint.run_of(trained.path)
    path = None if run is None else run / "results.json"
    if path is None or not path.is_file():
        return "None lie beside the checkpoint."
    results = json.loads(path.read_text(encoding="utf-8"))
    theirs = (results.get("checkpoint_step"), results.get("split_hash"))
    if theirs != (trained.meta["step"], trained.meta["split"]["hash"]):
        return "The run's results are of another checkpoint."
    # Fences of a length that nothing inside has.
    return f"````\n{_local(portable, terminal.table(results)).rstrip()}\n````"


def _local(portable: Portable, text: str) -> str:
    """A text without the folders of the machine that trained."""
    config = portable.predictor.trained.config
    for path in (config.data.root, config.model.pretrained):
        if "/" in path and not path.startswith("hf:"):
            text = text.replace(path, pathlib.PurePath(path).name)
    return text


def _synthetic(data: Mapping[str, Any]) -> str:
    return "; **they are synthetic**" if data.get("synthetic") else ""


def _tiles(data: Mapping[str, Any], scale: str) -> str:
    pixels = data.get("tile_pixels")
    return f", of images of {pixels}×{pixels} pixels{scale}" if pixels else scale


def _numbers(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in values)
