"""Messages of `histojax predict`: a warning about images unlike the training images, and the final summary."""

import pathlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from histojax.core.text_table import text_table
from histojax.evaluation.conformal import SetRule
from histojax.inference.predict import prediction_table
from histojax.inference.predict.images import ImageRef
from histojax.inference.predict.set_columns import set_lines


def magnification_warnings(refs: Sequence[ImageRef], trained_at: Iterable[str]) -> Iterator[str]:
    """Yield a warning per magnification that models were trained at, if images are of another one.

    Args:
      refs: images, whose magnification their names (as BreakHis has them) or a list may state.
      trained_at: magnification of each model's training images; empty: several, or unknown.
    """
    stated = Counter(prediction_table.image_facts(ref).get("magnification", "") for ref in refs)
    for magnification in dict.fromkeys(trained_at):
        others = {name: count for name, count in sorted(stated.items()) if name not in ("", magnification)}
        if magnification and others:
            listed = ", ".join(f"{count} at {name}" for name, count in others.items())
            yield (
                f"the model was trained on images at {magnification}, but names or lists state other magnifications "
                f"for {sum(others.values())} of {len(refs)} images ({listed}): do not rely on their predictions"
            )


def summary_lines(
    summary: prediction_table.Summary, output: pathlib.Path, sets: SetRule | None = None, *, abstain: bool = False
) -> list[str]:
    """Lay out what a table of predictions holds, and where it is."""
    total = summary.images + summary.failed
    known = len(summary.patients)
    patients = f" of {known} patient{'s' if known > 1 else ''}" if known else ""
    lines = [f"{summary.images} of {total} images{patients} are in {output.absolute()}"]
    rows = [(f"  {name}", str(count), f"{count / summary.images:.1%}") for name, count in summary.labels.items()
            if summary.images]  # fmt: skip
    lines += text_table(rows, right=(1, 2)) if rows else []
    if sets is not None and summary.images:
        lines += set_lines(summary.sets, sets, abstain=abstain)
    if summary.flags is not None:
        flags = ", ".join(f"{flag} {count}" for flag, count in summary.flags.most_common()) or "none"
        lines.append(f"Unusual images: {flags}; a usual one is no proof that its prediction is right")
    if summary.failed:
        failures = prediction_table.failures_path(output).absolute()
        lines.append(f"{summary.failed} of {total} images could not be read: see {failures}")
    if summary.not_normalised:
        lines.append(
            f"{summary.not_normalised} of {summary.images} images have too little tissue for stain normalisation: the "
            "model saw them as they are (column stain_normalised)"
        )
    return lines
