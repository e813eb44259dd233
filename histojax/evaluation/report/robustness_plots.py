"""Curves of metrics over the strength of shifts, from robustness.json."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from histojax.core.files import atomic_write
from histojax.evaluation.report import plots
from histojax.evaluation.report.html_templates import printable

SHOWN = {"balanced_accuracy": "balanced accuracy", "auroc": "AUROC", "ece": "ECE"}
_WIDTH, _HEIGHT = 2.6, 2.0  # inches of a panel: four stand side by side on a page, one on a telephone
_COLUMNS = 4
_MAX_RUNS = 6  # lines of a panel
_DASHES = ("-", "--", ":")


def panels(run: Mapping[str, Any]) -> dict[str, bytes]:
    """Draw a figure per shift of one run, with the metrics of `SHOWN`.

    Args:
      run: of `runs` in robustness.json.

    Returns:
      Title of the shift -> SVG file.
    """
    found = {}
    with matplotlib.rc_context(plots.STYLE):
        for shift in run["shifts"]:
            figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
            axes = figure.subplots()
            _draw(axes, shift["title"], shift, [(shift, metric, i) for i, metric in enumerate(SHOWN)])
            found[shift["title"]] = plots.svg(figure)
        found = {"legend": plots.svg(_legend_figure(list(SHOWN.values())))} | found
    return found


def write(results: Mapping[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
    """Write the curves as SVG and PNG: of one run all metrics of `SHOWN`; of several, a line per run and metric files.

    Args:
      results: content of robustness.json.
      folder: folder to write to.

    Returns:
      The files.
    """
    runs = results["runs"][:_MAX_RUNS]
    several = len(runs) > 1
    pictures = {f"curves_{name}": (name,) for name in SHOWN} if several else {"curves": tuple(SHOWN)}
    paths = []
    for name, metrics in pictures.items():
        with matplotlib.rc_context(plots.STYLE):
            figure = _grid(runs, metrics)
            for suffix in ("svg", "png"):
                path = folder / f"{name}.{suffix}"
                with atomic_write(path) as temporary:
                    if suffix == "svg":
                        temporary.write_bytes(plots.svg(figure))
                    else:
                        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
                paths.append(path)
    return paths


def _grid(runs: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Figure:
    """Draw all shifts beside one another."""
    shifts = {shift["name"]: shift for run in runs for shift in run["shifts"]}
    rows = math.ceil(len(shifts) / _COLUMNS)
    columns = min(_COLUMNS, len(shifts))
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, first) in zip(panels, shifts.items(), strict=False):
        lines = []
        for i, run in enumerate(runs):
            found = [shift for shift in run["shifts"] if shift["name"] == name]
            lines += [(shift, metric, i if len(runs) > 1 else j) for shift in found for j, metric in enumerate(metrics)]
        _draw(axes, first["title"], first, lines)
    for axes in panels[len(shifts) :]:
        axes.set_visible(False)
    names = [run["name"] for run in runs] if len(runs) > 1 else [SHOWN[metric] for metric in metrics]
    title = f"{SHOWN[metrics[0]]}: " if len(runs) > 1 else ""
    handles = [matplotlib.lines.Line2D([], [], **_style(i)) for i in range(len(names))]
    labels = [f"{title}{printable(name)}" for name in names]
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(names), 3))
    return figure


def _draw(
    axes: Axes, title: str, shift: Mapping[str, Any], lines: Sequence[tuple[Mapping[str, Any], str, int]]
) -> None:
    """Draw the curves of a shift, each with a band for its interval."""
    for one, metric, style in lines:
        points = [(step["strength"], step["metrics"][metric]) for step in one["strengths"]]
        points = [(x, found) for x, found in points if found["value"] is not None]
        colour = plots.COLOURS[style % len(plots.COLOURS)]
        axes.plot([x for x, _ in points], [found["value"] for _, found in points], **_style(style))
        known = [(x, found["low"], found["high"]) for x, found in points if found["low"] is not None]
        if known:
            xs, lows, highs = zip(*known, strict=True)
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.12, linewidth=0)
    axes.axvline(0, color="#bbbbbb", linewidth=0.7, zorder=0)
    axes.set_xticks([step["strength"] for step in shift["strengths"]])
    axes.set_xticklabels([step["label"].removesuffix(" %") for step in shift["strengths"]], fontsize=8)
    percent = "%, " if any(step["label"].endswith("%") for step in shift["strengths"]) else ""
    axes.set_xlabel(percent + shift["unit"], fontsize=8)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title(printable(title), fontsize=9)
    axes.grid(axis="y", color="#ececec", linewidth=0.7)


def _legend_figure(names: Sequence[str]) -> Figure:
    """Draw the legend that all panels share."""
    figure = Figure(figsize=(_WIDTH, 0.8))
    handles = [matplotlib.lines.Line2D([], [], **_style(i)) for i in range(len(names))]
    figure.legend(handles, names, loc="center left", title="line, band: 95 %", alignment="left")
    return figure


def _style(i: int) -> dict[str, Any]:
    return {
        "color": plots.COLOURS[i % len(plots.COLOURS)], "linestyle": _DASHES[i % len(_DASHES)],
        "linewidth": 1.5, "marker": ".", "markersize": 5,
    }  # fmt: skip
