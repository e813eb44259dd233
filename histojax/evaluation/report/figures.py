"""Figures of a report as SVG: curves, reliability diagrams, training."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histojax.evaluation.report.pages import printable

# Okabe and Ito's colours, told apart by colour-blind eyes, too; dashes tell them apart in grey print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
_DASHES = ("-", "--", "-.", ":")
_GREY = "#8a8a8a"
_LONGEST_NAME = 34
MOST_LINES = 12  # of one picture; more cannot be told apart
# Text stays text, in the reader's fonts; a dollar sign is no formula.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "histojax",
    "text.parse_math": False,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "legend.fontsize": 8.0,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
}


def curve_figure(curves: Mapping[str, Mapping[str, Any]]) -> bytes | None:
    """ROC and precision-recall curves side by side.

    Args:
      curves: name in the legend -> as `report.describe` gives them.

    Returns:
      An SVG file; None where no curve is defined.
    """
    drawn = {name: curve for name, curve in curves.items() if curve["roc"] and curve["precision_recall"]}
    if not drawn:
        return None
    drawn = dict(list(drawn.items())[:MOST_LINES])
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
        lines: tuple[list[Any], list[Any]] = ([], [])
        for i, curve in enumerate(drawn.values()):
            roc, precision = curve["roc"], curve["precision_recall"]
            lines[0].extend(left.plot(roc["x"], roc["y"], **_look(i)))
            steps = right.plot(precision["x"], precision["y"], drawstyle="steps-pre", **_look(i))
            lines[1].extend(steps)
            right.axhline(curve["prevalence"], color=steps[0].get_color(), linewidth=0.7, linestyle=":")
        for axes, found, key, where in (
            (left, lines[0], "auroc", "lower right"),
            (right, lines[1], "average_precision", "lower left"),
        ):
            texts = [f"{_number(curve[key]['value'])}  {_name(name)}" for name, curve in drawn.items()]
            axes.legend(found, texts, loc=where, title="area" if key == "auroc" else "average precision")
            _unit_square(axes)
        left.set(xlabel="False positive rate", ylabel="True positive rate", title="ROC")
        right.set(xlabel="Recall", ylabel="Precision", title="Precision and recall (dotted: prevalence)")
        return _svg(figure)


def reliability_figure(entry: Mapping[str, Any]) -> bytes:
    """A reliability diagram, beside it that after temperature scaling, with the number of images in each bin.

    Args:
      entry: of `calibration` in `report.describe`.
    """
    states = [("as predicted", entry["before"])]
    if entry["after"] is not None:
        states.append((f"at temperature {entry['temperature']:.3g}", entry["after"]))
    what = "probability of the predicted class" if entry["of"] is None else f"probability of {_name(entry['of'])}"
    came = "right" if entry["of"] is None else "truly so"
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6 * len(states), 4.1), layout="constrained")
        grid = figure.subplots(2, len(states), sharex=True, squeeze=False, height_ratios=(4, 1))
        for i, (title, state) in enumerate(states):
            upper, lower = grid[0, i], grid[1, i]
            bins = state["bins"]
            means = [one["mean_probability"] for one in bins]
            shares = [one["share"]["value"] for one in bins]
            upper.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
            for one in bins:
                low, high = one["share"]["low"], one["share"]["high"]
                if low is not None and high is not None:
                    upper.plot([one["mean_probability"]] * 2, [low, high], color=COLOURS[i], linewidth=1.2, alpha=0.6)
            upper.plot(means, shares, color=COLOURS[i], marker="o", markersize=4, linewidth=1.0)
            _unit_square(upper)
            upper.set(title=f"{title}: ECE {_number(state['scores']['ece']['value'])}", ylabel=f"share {came}")
            width = 1 / 15
            lower.bar(
                [one["low"] + width / 2 for one in bins], [one["n_images"] for one in bins], width * 0.9,
                color=COLOURS[i], alpha=0.6,
            )  # fmt: skip
            lower.set(xlabel=what, ylabel="images")
            lower.locator_params(axis="y", nbins=2)
        return _svg(figure)


def training_figure(training: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes | None:
    """Loss, and the other metrics, over updates."""
    losses = {name: series for name, series in training.items() if name.endswith("/loss")}
    others = {name: series for name, series in training.items() if name not in losses}
    groups = [("Loss", losses), ("Metrics", others)]
    groups = [(title, group) for title, group in groups if any(len(series["step"]) for series in group.values())]
    if not groups:
        return None
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.6 * len(groups), 3.2), layout="constrained")
        for axes, (title, group) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
            lines = []
            for i, series in enumerate(group.values()):
                marker = "." if len(series["step"]) < 60 else ""
                lines += axes.plot(series["step"], series["value"], marker=marker, **_look(i))
            names = [name.replace("/", ": ").replace("_", " ") for name in group]
            axes.legend(lines, names, loc="best")
            axes.set(xlabel="Updates", title=title)
            if title == "Metrics":
                axes.set_ylim(-0.02, 1.02)
            axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
        return _svg(figure)


def _look(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": _DASHES[(i + i // len(COLOURS)) % len(_DASHES)],
        "linewidth": 1.5,
    }


def _unit_square(axes: Axes) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(color="#ececec", linewidth=0.7)


def _name(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3f}"


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The reader's fonts may have a character that the font of the layout lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
