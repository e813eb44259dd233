"""Robustness indices of files of features."""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any

import pandas as pd

from data_pipelines.breakhis import filenames
from data_pipelines.tables import read_table
from histojax.core.errors import RunError
from histojax.core.text_table import text_table
from histojax.evaluation import feature_files, formatting
from histojax.studies.robustness import index
from histojax.studies.robustness.study import USE

_GROUPS = ("patient_id", "case_id", "slide_id")
_HEADER = ("features", "index", "", "k", "support", "images", "kNN bal. acc.")


def indices(
    files: Sequence[pathlib.Path],
    *,
    label: str,
    confounder: str,
    table: pathlib.Path | None = None,
    k_values: Sequence[int] = index.K,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute the robustness index of each file of features.

    Args:
      files: as `histojax embed` writes them.
      label: column of the classes.
      confounder: column of what should not matter: of the file, of `table`, or `magnification` of BreakHis names.
      table: table with `image_id` and further columns; None: none.
      k_values: as for `robustness_index`.
      resamples: of the bootstrap.
      seed: of the bootstrap.

    Returns:
      `label`, `confounder` and `rows`, one per file.

    Raises:
      FeatureFileError, RunError, DataError: a file or column is missing, or the index cannot be computed.
    """
    further = {} if table is None else _read(table)
    rows = []
    for path in files:
        found = feature_files.read(path)
        columns = {name: _column(path, found.facts, further, name, table) for name in (label, confounder)}
        known = [i for i in range(len(found)) if all(column[i] for column in columns.values())]
        group_name, groups = _groups(found.facts, known)
        labels, sources = ([columns[name][i] for i in known] for name in (label, confounder))
        try:
            one = index.robustness_index(
                found.features[known], labels, sources, groups, k_values=k_values, n_resamples=resamples, seed=seed
            )
        except ValueError as error:
            raise RunError(f"{path}: {error}") from error
        facts = {"name": path.stem, "model": found.metadata.get("model"), "layer": found.metadata.get("layer")}
        counts = {"n_images": len(known), "left_out": len(found) - len(known)}
        rows.append(facts | counts | {"group": group_name, "n_groups": len(set(groups))} | one.to_json())
    return {"use": USE, "label": label, "confounder": confounder, "rows": rows}


def text(results: dict[str, Any]) -> str:
    """Lay out the indices as text."""
    rows = results["rows"]
    cells = [
        [
            row["name"],
            formatting.number(row["index"]["value"]),
            formatting.interval(row["index"]),
            str(row["k"]),
            formatting.number(row["support"]),
            str(row["n_images"]),
            formatting.number(row["knn_balanced_accuracy"]),
        ]
        for row in rows
    ]
    lines = [
        f"robustness index of {results['label']} against {results['confounder']}: 1 where neighbours share the "
        "class, 0 where they share the confounder",
        f"images of the same {rows[0]['group']} are not compared; 95 % intervals over these groups",
        "",
        *text_table([_HEADER, *cells], right=range(1, len(_HEADER))),
    ]
    if left_out := max(row["left_out"] for row in rows):
        lines.append(
            f"note: up to {left_out} images without {results['label']} or {results['confounder']} are left out"
        )
    return "\n".join(lines) + "\n"


def _read(path: pathlib.Path) -> dict[str, dict[str, str]]:
    header, lines = read_table(path)
    if "image_id" not in header:
        raise RunError(f"{path}: no column image_id, by which its rows are found")
    return {cells["image_id"]: cells for _, cells in lines}


def _column(
    path: pathlib.Path, facts: pd.DataFrame, further: dict[str, dict[str, str]], name: str, table: pathlib.Path | None
) -> list[str]:
    """Find a column: in the table, else in the file, else the magnification in BreakHis names; empty where unknown."""
    ids = facts["image_id"].tolist()
    if further and name in next(iter(further.values())):
        return [further.get(image_id, {}).get(name, "") for image_id in ids]
    if name in facts and facts[name].notna().any():
        return [value or "" for value in facts[name]]
    if name == "magnification":
        with contextlib.suppress(filenames.BadNameError):
            return [filenames.parse(pathlib.PurePosixPath(one).stem + ".png").magnification for one in ids]
    where = f"{path} and {table}" if table else str(path)
    raise RunError(f"{where}: no column {name}; name a table with image_id and {name} by --table")


def _groups(facts: pd.DataFrame, known: Sequence[int]) -> tuple[str, list[str]]:
    """Choose the group whose images are not compared: the first of patient, case and slide known of every image."""
    rows = facts.iloc[list(known)]
    for name in _GROUPS:
        if len(rows) and rows[name].notna().all() and (rows[name] != "").all():
            return name.removesuffix("_id"), rows[name].tolist()
    return "image", rows["image_id"].tolist()
