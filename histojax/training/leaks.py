"""Leaks that a run looks for before its first epoch."""

import dataclasses
import logging

from ml_collections import ConfigDict

from data_pipelines.splits import Split
from histojax.core.errors import RunError
from histojax.data.sources import Dataset

_log = logging.getLogger(__name__)
_LISTED = 10


def check(config: ConfigDict, dataset: Dataset, split: Split) -> Split:
    """Look for nearly identical pictures on two sides of a split of the user's own images.

    Published datasets are audited by `histojax audit`; a protocol with copies wants them on two sides.

    Args:
      config: of the run.
      dataset: the images.
      split: their split.

    Returns:
      The split; if leaks are allowed, with a warning that counts them.

    Raises:
      RunError: there are some, and `data.allow_leak` is not set.
    """
    if config.data.pipeline != "image_folder" or split.ignores_copies or dataset.prepared.synthetic:
        return split
    found = dataset.crossing(split)
    if not found:
        return split
    text = f"pairs of nearly identical pictures on two sides of the split, which make results too good: {len(found)}"
    listed = "\n".join(f"  {line}" for line in found[:_LISTED])
    if not config.data.allow_leak:
        raise RunError(
            f"leak: {text}\n{listed}\nRemove one of each pair, or name the patients so that each is on one side. "
            "To train all the same: --config.data.allow_leak=true (the results then count them)"
        )
    _log.warning("leak: %s\n%s", text, listed)
    return dataclasses.replace(split, warnings=(*split.warnings, f"leak: {text}"))
