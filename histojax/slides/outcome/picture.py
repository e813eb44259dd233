"""Kaplan-Meier curves with intervals, censored patients and numbers at risk, one panel per cut-off."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from histojax.evaluation import fonts
from histojax.evaluation.report.plots import COLOURS, STYLE, svg
from histojax.slides.outcome import text
from histojax.slides.outcome.analysis import HIGH, LOW
from histojax.slides.outcome.spec import USE

_DPI = 300
_WIDTH = 4.6  # inches: legible on a telephone
_PANEL, _TABLE = 3.2, 0.55  # heights in inches: curves, numbers at risk
_POINTS, _SMALL = 9.0, 7.5  # of the title, and of the sentences below the last panel
_HEAD, _LINE = 0.65, 0.145  # heights in inches: legend and margins of a panel, one line of text
_LINES = {LOW: (COLOURS[0], "-"), HIGH: (COLOURS[1], "--")}


def draw(result: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Draw the curves of the content of outcome.json, with its warnings below; return an SVG and a PNG file."""
    figures = result["figures"]
    sentences = [USE, *(f"Warning: {warning}" for warning in figures["warnings"])]
    below = [line for sentence in sentences for line in fonts.wrap(sentence, _WIDTH - 0.3, _SMALL)]
    foot = _LINE * len(below) + 0.15
    panels = len(figures["cutoffs"])
    titles = sum(len(_title(block)) for block in figures["cutoffs"].values())
    height = panels * (_HEAD + _PANEL + _TABLE) + titles * _LINE + foot
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(rect=(0, foot / height, 1, 1 - foot / height))
        figure = Figure(figsize=(_WIDTH, height), layout=layout)
        grid = figure.subplots(2 * panels, 1, squeeze=False, height_ratios=(_PANEL, _TABLE) * panels)[:, 0]
        for curves, table, block in zip(grid[::2], grid[1::2], figures["cutoffs"].values(), strict=True):
            _curves(curves, block, figures["time_unit"])
            _numbers(table, block, curves)
        figure.text(0.02, (foot - 0.1) / height, "\n".join(below), fontsize=_SMALL, va="top", color="#444444")
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=_DPI, metadata={"Software": None})
        return svg(figure), png.getvalue()


def _title(block: Mapping[str, Any]) -> list[str]:
    """The lines above a panel: the cut-off, the hazard ratio and the p value."""
    ratio, test = block["hazard_ratio"]["unadjusted"]["hazard_ratio"], block["log_rank"]
    sentences = [block["rule"].removesuffix(", else stroma-low"), f"hazard ratio {text.figure(ratio)}"]
    if test["p"] is not None:
        p = text.p_value(test.get("p_holm", test["p"]))
        sentences.append(f"log-rank p {p if '<' in p else f'= {p}'}{' (Holm)' * ('p_holm' in test)}")
    return [line for sentence in sentences for line in fonts.wrap(sentence, _WIDTH - 1.1, _POINTS)]


def _curves(axes: Axes, block: Mapping[str, Any], unit: str) -> None:
    """Draw the curves of both groups."""
    lines = []
    for name, group in block["groups"].items():
        colour, dashes = _LINES[name]
        label = f"{name}: {group['patients']} patients, {group['events']} events"
        if group["curve"] is None:
            continue
        curve = {
            key: np.array([0.0 if key == "time" else 1.0, *values], float) for key, values in group["curve"].items()
        }
        style: Any = {"color": colour, "linestyle": dashes, "linewidth": 1.5}
        lines += axes.step(curve["time"], curve["survival"], where="post", label=label, **style)
        for end in (curve["low"], curve["high"]):
            end[np.isnan(end)] = end[~np.isnan(end)][-1]  # the band reaches the time at which the curve falls to 0
        axes.fill_between(
            curve["time"], curve["low"], curve["high"], step="post", color=colour, alpha=0.15, linewidth=0
        )
        left = np.array([0, *group["curve"]["censored"]]) > 0
        axes.plot(curve["time"][left], curve["survival"][left], "|", color=colour, markersize=5, markeredgewidth=0.8)
    axes.set_title("\n".join(_title(block)), loc="left", fontsize=_POINTS, pad=30)
    axes.legend(handles=lines, loc="lower left", bbox_to_anchor=(-0.02, 0.99), borderaxespad=0, handlelength=2.4)
    ticks = block["at_risk"]["time"]
    axes.set(xlabel=unit, ylabel="probability without event", ylim=(-0.02, 1.02), xticks=ticks)
    axes.set_xlim(0, None)
    axes.grid(axis="y", color="#ececec", linewidth=0.7)
    axes.set_axisbelow(True)


def _numbers(axes: Axes, block: Mapping[str, Any], curves: Axes) -> None:
    """Write the numbers at risk below the ticks of the curves."""
    axes.sharex(curves)
    ticks, names = block["at_risk"]["time"], [LOW, HIGH]
    for row, name in enumerate(names):
        for time, n in zip(ticks, block["at_risk"][name], strict=True):
            axes.text(time, row, str(n), ha="center", va="center", color=_LINES[name][0], fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(1.6, -0.6)
    axes.set_title("at risk", loc="left", fontsize=8, pad=2)
    axes.tick_params(length=0, labelbottom=False, pad=14)  # room for the first number
    axes.spines[:].set_visible(False)
