"""Plots of a report as SVG: curves, reliability diagrams, training."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histojax.evaluation.calibration import BINS
from histojax.evaluation.formatting import number
from histojax.evaluation.report.html_templates import printable

# Okabe and Ito's colours remain distinct for colour-blind readers; dashes keep lines distinct in grey print.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
_DASHES = ("-", "--", "-.", ":")
_GREY = "#8a8a8a"
_MAX_NAME = 34  # characters of a name in a legend
_WIDTH = 4.1  # inches of a figure: legible on a telephone, and two stand side by side on a page
MAX_LINES = 12  # lines of one plot; more cannot be told apart
# Text stays text, in the reader's fonts. A dollar sign does not start a formula.
STYLE: Any = {
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


def curves_svgs(curves: Mapping[str, Mapping[str, Any]]) -> list[bytes]:
    """Plot ROC and precision-recall curves, each in a figure of its own.

    Args:
      curves: name in the legend -> curves as `report_json.describe` returns them.

    Returns:
      Two SVG files; none where no curve is defined.
    """
    drawn = {name: curve for name, curve in curves.items() if curve["roc"] and curve["precision_recall"]}
    if not drawn:
        return []
    drawn = dict(list(drawn.items())[:MAX_LINES])
    with matplotlib.rc_context(STYLE):
        return [svg(_roc_figure(drawn)), svg(_precision_recall_figure(drawn))]


def _roc_figure(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure, axes = _square_figure()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    lines: list[Any] = []
    for i, curve in enumerate(curves.values()):
        lines += axes.plot(curve["roc"]["x"], curve["roc"]["y"], **_line_style(i))
    axes.legend(lines, _legend(curves, "auroc"), loc="lower right", title="area")
    axes.set(xlabel="False positive rate", ylabel="True positive rate", title="ROC")
    return figure


def _precision_recall_figure(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure, axes = _square_figure()
    lines: list[Any] = []
    for i, curve in enumerate(curves.values()):
        points = curve["precision_recall"]
        lines += axes.plot(points["x"], points["y"], drawstyle="steps-pre", **_line_style(i))
        axes.axhline(curve["prevalence"], color=lines[-1].get_color(), linewidth=0.7, linestyle=":")
    axes.legend(lines, _legend(curves, "average_precision"), loc="lower left", title="average precision")
    axes.set(xlabel="Recall", ylabel="Precision", title="Precision-recall (dotted: prevalence)")
    return figure


def _square_figure() -> tuple[Figure, Axes]:
    """Make a figure whose axes show 0 to 1 in both directions."""
    figure = Figure(figsize=(_WIDTH, 3.7), layout="constrained")
    axes = figure.subplots()
    _unit_square(axes)
    return figure, axes


def _legend(curves: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    return [f"{number(curve[key]['value'])}  {_short_name(name)}" for name, curve in curves.items()]


def reliability_svgs(entry: Mapping[str, Any]) -> list[bytes]:
    """Plot reliability diagrams as predicted and after temperature scaling, with the number of images per bin.

    Args:
      entry: of `calibration` in `report_json.describe`.

    Returns:
      One or two SVG files.
    """
    states = [("as predicted", entry["before"])]
    if entry["after"] is not None:
        states.append((f"at temperature {entry['temperature']:.3g}", entry["after"]))
    if entry["of"] is None:
        xlabel, ylabel = "probability of the predicted class", "fraction correct"
    else:
        xlabel, ylabel = f"probability of {_short_name(entry['of'])}", "fraction positive"
    files = []
    with matplotlib.rc_context(STYLE):
        for colour, (title, state) in zip(COLOURS, states, strict=False):
            figure = Figure(figsize=(_WIDTH, 4.1), layout="constrained")
            upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
            _reliability_panel(upper, state["bins"], colour)
            upper.set(title=f"{title}: ECE {number(state['scores']['ece']['value'])}", ylabel=ylabel)
            _count_panel(lower, state["bins"], colour)
            lower.set(xlabel=xlabel, ylabel="images")
            files.append(svg(figure))
    return files


def _reliability_panel(axes: Axes, bins: Sequence[Mapping[str, Any]], colour: str) -> None:
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, linestyle=":")
    for one in bins:
        low, high = one["share"]["low"], one["share"]["high"]
        if low is not None and high is not None:
            axes.plot([one["mean_probability"]] * 2, [low, high], color=colour, linewidth=1.2, alpha=0.6)
    means = [one["mean_probability"] for one in bins]
    fractions = [one["share"]["value"] for one in bins]
    axes.plot(means, fractions, color=colour, marker="o", markersize=4, linewidth=1.0)
    _unit_square(axes)


def _count_panel(axes: Axes, bins: Sequence[Mapping[str, Any]], colour: str) -> None:
    width = 1 / BINS
    centres, counts = [one["low"] + width / 2 for one in bins], [one["n_images"] for one in bins]
    axes.bar(centres, counts, width * 0.9, color=colour, alpha=0.6)
    axes.locator_params(axis="y", nbins=2)


def selective_svgs(entries: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Plot the accuracy of the most confident answers over the fraction of images answered.

    Args:
      entries: of `selective` in `report_json.describe`.

    Returns:
      One SVG file. A single line has a band, its pointwise intervals.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        lines: list[Any] = []
        for i, entry in enumerate(entries[:MAX_LINES]):
            points = [point for point in entry["points"] if point["accuracy"]["value"] is not None]
            fractions = [point["fraction"] for point in points]
            lines += axes.plot(fractions, [point["accuracy"]["value"] for point in points], **_line_style(i))
            low, high = ([point["accuracy"][end] for point in points] for end in ("low", "high"))
            if len(entries) == 1 and None not in low:
                axes.fill_between(fractions, low, high, color=lines[-1].get_color(), alpha=0.2, linewidth=0)
        if len(entries) > 1:
            names = [f"{number(e['area']['value'])}  {_short_name(e['of'])}" for e in entries[:MAX_LINES]]
            axes.legend(lines, names, loc="lower left", title="area")
        axes.set(xlabel="fraction answered, the most confident first", ylabel="accuracy of the answers", xlim=(0, 1.02))
        axes.grid(color="#ececec", linewidth=0.7)
        return [svg(figure)]


def training_svgs(training: Mapping[str, Mapping[str, Sequence[float]]]) -> list[bytes]:
    """Plot the loss, and the other metrics, over optimizer steps.

    Args:
      training: name, such as `train/loss` -> `step` and `value`.

    Returns:
      An SVG file for each of the two that has any value.
    """
    losses = {name: series for name, series in training.items() if name.endswith("/loss")}
    others = {name: series for name, series in training.items() if name not in losses}
    files = []
    for title, group in (("Loss", losses), ("Metrics", others)):
        if any(len(series["step"]) for series in group.values()):
            with matplotlib.rc_context(STYLE):
                files.append(svg(_training_figure(title, group)))
    return files


def _training_figure(title: str, group: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    figure = Figure(figsize=(_WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    lines: list[Any] = []
    for i, series in enumerate(group.values()):
        marker = "." if len(series["step"]) < 60 else ""
        lines += axes.plot(series["step"], series["value"], marker=marker, **_line_style(i))
    axes.legend(lines, [name.replace("/", ": ").replace("_", " ") for name in group], loc="best")
    axes.set(xlabel="Optimizer steps", title=title)
    if title == "Metrics":
        axes.set_ylim(-0.02, 1.02)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    return figure


def _line_style(i: int) -> dict[str, Any]:
    """Choose colour and dashes of the i-th line; the dashes shift when the colours repeat."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": _DASHES[(i + i // len(COLOURS)) % len(_DASHES)],
        "linewidth": 1.5,
    }


def _unit_square(axes: Axes) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(color="#ececec", linewidth=0.7)


def _short_name(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…"


def svg(figure: Figure) -> bytes:
    """Return a figure, drawn within `matplotlib.rc_context(STYLE)`, as an SVG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # The reader's fonts may have a character that the font used for the layout lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
