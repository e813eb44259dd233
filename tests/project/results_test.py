"""Files of benchmarks/results: each states its provenance and is shown; each table of results comes from one."""

import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from benchmarks import record_results
from docs import results_tables
from docs.results_tables import BLOCK, Results
from tests.conftest import ROOT

RESULTS = Results()
PROVENANCE = dict.fromkeys(record_results.PROVENANCE, "not recorded")
SNIPPET = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)


# ---- The files of the project --------------------------------------------------------------------------------------


def leaves(node: Any) -> Iterator[Any]:
    """The numbers and texts below a node."""
    if isinstance(node, dict):
        for value in node.values():
            yield from leaves(value)
    elif node is not None:
        yield node


@pytest.mark.parametrize("name", RESULTS.files)
def test_a_file_states_where_its_figures_come_from(name: str) -> None:
    content = RESULTS.files[name]
    if "provenance" in content:
        assert tuple(content["provenance"]) == record_results.PROVENANCE
        assert all(isinstance(text, str) and text.strip() for text in content["provenance"].values())
    else:  # it only refers to other files
        for value in leaves(content["rows"]):
            assert isinstance(value, str), f"{value} has no provenance"
            assert not re.search(r"\d\.\d", re.sub(r"{.*?}", "", value)), f"'{value}' has no provenance"


def test_every_file_is_shown_in_a_page() -> None:
    for _, text in results_tables.marked_pages():
        RESULTS.fill(text)
    assert not set(RESULTS.files) - RESULTS.used


def pages_of_results() -> list[str]:
    """The pages under "Results" in the navigation."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    sections = next(section["Results"] for section in nav if "Results" in section)
    return [f"docs/{path}" for section in sections for path in section.values()]


@pytest.mark.parametrize("page", pages_of_results())
def test_every_table_of_a_page_of_results_comes_from_a_file(page: str) -> None:
    text = SNIPPET.sub(lambda match: (ROOT / match[1]).read_text(), (ROOT / page).read_text())
    assert not re.findall(r"^ *\|.*", BLOCK.sub("", text), re.MULTILINE), "put the table into benchmarks/results"


def test_every_table_of_the_readme_with_figures_comes_from_a_file() -> None:
    text = re.sub(r"\(.*?\)", "", BLOCK.sub("", (ROOT / "README.md").read_text()))  # without targets of links
    assert not re.findall(r"^ *\|.*\d.*", text, re.MULTILINE), "put the table into benchmarks/results"


# ---- Rendering -----------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: pathlib.Path) -> Results:
    row = {
        "name": "a",
        "count": 1234,
        "tiny": 3.4e-6,
        "accuracy": {"value": 0.5, "low": 0.25, "high": 1.0},
        "noted": {"value": 0.5, "note": "¹"},
        "folds": {"mean": 0.5, "sd": 0.125},
        "one_fold": {"mean": 0.5, "sd": None},
        "ratio": {"median": 1.5, "q25": 1.25, "q75": 2.0},
        "none": None,
    }
    columns = {"name": "{name}", "n": "{count:,}", "accuracy": "{accuracy:.3f}", "none": "{count} of {none}"}
    content = {"provenance": PROVENANCE, "tables": {"main": {"columns": columns}}, "rows": {"first": row}}
    (tmp_path / "one.json").write_text(json.dumps(content))
    other = {"name": "accuracy {one.first.accuracy.value:.1f}"}
    tables = {"left": {"columns": {"": "{name}"}}, "right": {"columns": {"": "{name}"}, "rows": ["b"]}}
    (tmp_path / "two.json").write_text(json.dumps({"tables": tables, "rows": {"a": other, "b": {"name": "b"}}}))
    return Results(tmp_path)


def test_a_table_shows_its_rows_and_names_its_file(results: Results) -> None:
    head, *lines, tail = results.fill("x\n\n<!-- results: one -->\nold\n<!-- end -->\ny").splitlines()
    assert (head, tail) == ("x", "y")
    assert lines == [
        "",
        "<!-- results: one -->",
        "",
        "| name | n | accuracy | none |",
        "| --- | --- | --- | --- |",
        "| a | 1,234 | 0.500 [0.250, 1.000] | |",
        "",
        "Source: `benchmarks/results/one.json`.",
        "",
        "<!-- end -->",
    ]
    assert results.table("two/left") == ["| |", "| --- |", "| accuracy 0.5 |", "| b |"]
    assert results.table("two/right")[2:] == ["| b |"]
    assert results.used == {"one", "two"}


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("count", "1234"),
        ("tiny:.1e", "3.4e-6"),
        ("accuracy.high:.0%", "100 %"),
        ("noted:.2f", "0.50 ¹"),
        ("folds:.3f", "0.500 ± 0.125"),
        ("one_fold:.1f", "0.5"),
        ("ratio:.2f", "1.50 (1.25 … 2.00)"),
    ],
)
def test_a_figure_in_a_sentence(results: Results, reference: str, shown: str) -> None:
    marker = f"is <!-- value: one.first.{reference} -->"
    assert results.fill(f"{marker}0<!-- end -->.") == f"{marker}{shown}<!-- end -->."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results: three -->\n<!-- end -->", "three: there is no three.json"),
        ("<!-- results: two -->\n<!-- end -->", "two: name one of its tables, such as two/left"),
        ("is <!-- value: one.second.count --><!-- end -->", "there is no 'second'; known: first"),
        ("is <!-- value: four --><!-- end -->", "'four' is neither a key of the row nor NAME.ROW.KEY"),
        ("* <!-- value: one.first.count --><!-- end -->", "put a word before the marker"),
    ],
)
def test_a_wrong_marker_is_an_error(results: Results, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        results.fill(text)


# ---- Recording -----------------------------------------------------------------------------------------------------

ESTIMATE = {"value": 0.5, "low": 0.25, "high": 1.0}
SPREAD = {"median": 2.0, "q25": 1.0, "q75": 3.0}
FOLDS = {"mean": 0.5, "sd": 0.125, "folds": [0.4, 0.6], "pooled": ESTIMATE}
METRICS = {"accuracy": ESTIMATE, "gmean": ESTIMATE, "auroc": ESTIMATE}
SHIFTED = {"balanced_accuracy": ESTIMATE, "auroc": ESTIMATE, "ece": ESTIMATE}
COUNTS = {"n_images": 10, "n_patients": None}
JPEG = {"name": "jpeg", "title": "JPEG", "unit": "quality", "mean": SHIFTED, "change": SHIFTED}
SHIFTED_RUN = {"name": "a", "model": "m", "image_size": 96, "bootstrap": {}, "unshifted": SHIFTED, **COUNTS}
SHIFTED_RUN |= {"mean": SHIFTED, "change": SHIFTED}
SHIFTED_RUN |= {"shifts": [JPEG | {"worst": {"balanced_accuracy": ESTIMATE | {"label": "50"}}}]}
AGREEMENT = ("icc", "bias", "lower_limit", "upper_limit", "spearman", "mean_absolute_error")
STUDIES = {
    "protocols": (
        {
            "rows": [
                {"protocol": "case", "magnification": "40X", "figures": {"accuracy": FOLDS}}
                | {"majority_baseline": {"accuracy": 0.625}, **COUNTS}
            ],
            "transfer": None,
        },
        "| case | 10 | | 0.500 ± 0.125 | 0.500 [0.250, 1.000] | 0.625 |",
    ),
    "probe": (
        {
            "studies": [
                {
                    "protocol": "case",
                    "rows": [{"name": "a, knn", "metrics": METRICS, "folds": [], **COUNTS}],
                }
                | {"differences": [{"row": "a, knn", "differences": {"auroc": ESTIMATE}}]}
            ]
        },
        f"| a, knn | case | 10 | |{4 * ' 0.500 [0.250, 1.000] |'}",
    ),
    "comparison": (
        [{"model": "a", "accuracy": ESTIMATE, "gmean": {"value": 0.5}, "parameters": 1000, **COUNTS}],
        "| a | 10 | | 0.500 [0.250, 1.000] | 0.500 | 1,000 |",
    ),
    "run": ({"splits": {"test": {"image": {"f1": ESTIMATE}, **COUNTS}}}, "| test | 10 | | 0.500 [0.250, 1.000] |"),
    "robustness": (
        {"runs": [SHIFTED_RUN], "comparisons": []},
        f"| as they are | 0.500 [0.250, 1.000] | | |{2 * ' 0.500 [0.250, 1.000] |'}",
    ),
    "agreement": (
        {"rules": ["a", "b"], "figures": {"n": 10, **dict.fromkeys(AGREEMENT, ESTIMATE)}},
        "| 10 | 0.500 [0.250, 1.000] | 0.5 [0.2, 1.0] | 0.5 [0.2, 1.0] … 0.5 [0.2, 1.0] | 0.500 [0.250, 1.000] "
        "| 0.5 [0.2, 1.0] |",
    ),
    "bench": (
        {
            "machine": {"processor": "P", "cores": 2, "system": "S", "python": "3"},
            "settings": {"work": "step"},
            "results": [
                {"model": "a", "contestants": {"histojax": {"images_per_second": SPREAD, "rounds": [1]}}}
                | {"ratios": {"torch": {"paired": SPREAD}}}
            ],
        },
        "| step a | 2.0 (1.0 … 3.0) | 2.00 (1.00 … 3.00) |",
    ),
    "accelerator": (
        [
            {"work": "step", "model": "a", "rounds": {}, "ours step a": {"images_per_second": SPREAD}}
            | {"torch step a": {"images_per_second": SPREAD}, "ratio": {"paired": SPREAD}},
            {"limits": {}},
        ],
        "| step a | 2 (1 … 3) | 2 (1 … 3) | 2.00 (1.00 … 3.00) |",
    ),
}


def record(folder: pathlib.Path, study: Any) -> dict[str, Any]:
    path = folder / "study"
    path.write_text(json.dumps(study))
    flags = ["--command", "c", "--data", "d", "--protocol", "p", "--commit", "abc"]
    record_results.main([str(path), "name", *flags], folder)
    return json.loads((folder / "name.json").read_text())


@pytest.mark.parametrize("kind", STUDIES)
def test_a_study_is_recorded_and_shown(tmp_path: pathlib.Path, kind: str) -> None:
    study, shown = STUDIES[kind]
    provenance = record(tmp_path, study)["provenance"]
    assert tuple(provenance) == record_results.PROVENANCE
    assert all(provenance.values())
    assert (provenance["machine"].startswith("P, 2 cores, S, Python 3")) == (kind == "bench")
    assert Results(tmp_path).table("name")[2:3] == [shown]
    assert "rounds" not in json.dumps(Results(tmp_path).files["name"]["rows"])


def test_recording_again_keeps_the_tables(tmp_path: pathlib.Path) -> None:
    content = record(tmp_path, STUDIES["run"][0])
    content["tables"]["main"]["columns"] = {"own": "{n_images}"}
    (tmp_path / "name.json").write_text(json.dumps(content))
    assert record(tmp_path, {"splits": {"test": {"n_images": 20, "image": {}}}})["rows"]["test"]["n_images"] == 20
    assert Results(tmp_path).table("name")[:3] == ["| own |", "| --- |", "| 20 |"]


def test_folders_of_a_machine_are_not_recorded(tmp_path: pathlib.Path) -> None:
    text = "images of /data/lab/BreaKHis_v1, see https://arxiv.org/abs/2308.13150 and runs/a/fold_0"
    row = {"protocol": "case", "magnification": "40X", "data": text, "runs": ["/home/me/runs/a"]}
    rows = record(tmp_path, {"rows": [row], "transfer": None})["rows"]
    assert rows["case_40X"]["data"] == text.replace("/data/lab/", "")
    assert rows["case_40X"]["runs"] == ["a"]


def test_another_json_is_no_study(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SystemExit, match="not the results of a study"):
        record(tmp_path, {"a": 1})
