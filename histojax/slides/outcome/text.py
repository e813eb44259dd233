"""The figures of a cohort as lines for the terminal and for the picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from histojax.core.text_table import text_table
from histojax.evaluation import formatting
from histojax.slides.outcome import tables
from histojax.slides.outcome.spec import USE

_HEADER = ("", "value [95 % interval]", "p")


def lines(result: Mapping[str, Any]) -> list[str]:
    """Describe the content of outcome.json."""
    figures, unit = result["figures"], result["figures"]["time_unit"]
    spread, counts = figures["stroma_percentage"], result["counts"]
    follow_up = figures["median_follow_up"]
    out = [USE, ""]
    out.append(
        f"{figures['patients']} of {counts['patients']} patients with {figures['events']} events, "
        f"{counts['slides_used']} of {counts['slides']} slides; median follow-up (reverse Kaplan-Meier) "
        f"{'not reached' if follow_up is None else f'{follow_up:.4g} {unit}'}"
    )
    out.append(f"stroma percentage: mean {spread['mean']:.1f}, SD {spread['sd']:.1f}")
    out += left_out(result["excluded"]) + tables.listed(result["notes"])
    out += ["", *text_table([_HEADER, *_rows(figures)], right=(2,))]
    return [*out, *(f"warning: {warning}" for warning in figures["warnings"])]


def left_out(exclusions: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per reason for which slides or patients are left out."""
    return [
        f"left out: {one['count']} {one['kind']}{'s' * (one['count'] > 1)}, {one['reason']} ({one['remedy']})"
        for one in exclusions
    ]


def p_value(p: float | None) -> str:
    """Format a p value; "-" where there is none."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def figure(estimate: Mapping[str, Any], digits: int = 2) -> str:
    """Format a figure with its interval, or with the reason why there is none."""
    reason = f" ({estimate['reason']})" if estimate["reason"] else ""
    return formatting.with_interval(estimate, digits, undefined="-") + reason


def _rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    sd = f"{figures['stroma_percentage']['sd']:.1f}"
    rows = _models(f"hazard ratio per SD ({sd} points)", figures["per_sd"])
    if figures["corrected"] is not None:
        rows.append(("  corrected for measurement error", figure(figures["corrected"]["hazard_ratio"]), ""))
    for block in figures["cutoffs"].values():
        rows.append((block["rule"], "", ""))
        for name, group in block["groups"].items():
            counts = f"{name}: {group['patients']} patients, {group['events']} events, median {figures['time_unit']}"
            rows.append((f"  {counts}", _median(group["median"]), ""))
        test = block["log_rank"]
        rows.append(("  log-rank test", f"({test['reason']})" if test["reason"] else "", p_value(test["p"])))
        if "p_holm" in test:
            rows.append(("  log-rank test, by Holm", "", p_value(test["p_holm"])))
        rows += _models("  hazard ratio of stroma-high", block["hazard_ratio"])[:2]  # without the covariates
    rows.append(("Harrell's C, more stroma is higher risk", figure(figures["concordance"], 3), ""))
    return rows


def _median(estimate: Mapping[str, Any]) -> str:
    """Format a median time, whose upper end is often not reached."""
    if estimate["value"] is None:
        return f"- ({estimate['reason']})"
    ends = ("not reached" if end is None else f"{end:.1f}" for end in (estimate["low"], estimate["high"]))
    return f"{estimate['value']:.1f} [{', '.join(ends)}]"


def _models(title: str, models: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = [(title, figure(models["unadjusted"]["hazard_ratio"]), p_value(models["unadjusted"]["p"]))]
    if "adjusted" in models:
        adjusted = models["adjusted"]
        indent = " " * (len(title) - len(title.lstrip()) + 2)
        rows.append((f"{indent}adjusted", figure(adjusted["hazard_ratio"]), p_value(adjusted["p"])))
        for other in adjusted["covariates"]:
            against = f" against {other['reference']}" if other["reference"] is not None else ", per 1"
            rows.append((f"{indent}  {other['name']}{against}", figure(other["hazard_ratio"]), ""))
    return rows
