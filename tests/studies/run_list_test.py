"""`histojax runs`: each state of a run, its figure, and what is no run."""

import csv
import json
import os
import pathlib

import pytest

from histojax.core.errors import RunError
from histojax.core.locks import OWNER_FILE, owned
from histojax.studies import run_list
from tests.helpers.command import histojax


def write_run(folder: pathlib.Path, status: str, **results: object) -> pathlib.Path:
    folder.mkdir(parents=True)
    facts = {"model": "resnet50", "protocol": "case-disjoint", "sessions": [{"status": "failed"}, {"status": status}]}
    (folder / "run.json").write_text(json.dumps(facts))
    if results:
        (folder / "results.json").write_text(json.dumps(results))
    return folder


def block(metric: str = "accuracy", patients: int | None = 7) -> dict[str, object]:
    return {
        "test": {"n_images": 40, "n_patients": patients, "image": {metric: {"value": 0.8125, "low": 0.7, "high": 0.9}}}
    }


@pytest.fixture
def runs(tmp_path: pathlib.Path) -> pathlib.Path:
    root = tmp_path / "runs"
    write_run(root / "a", "finished", model="vit", protocol="official fold 1", splits=block())
    write_run(root / "b" / "fold_0", "failed: RunError: disk full")
    write_run(root / "b" / "fold_1", "interrupted", splits=block("mean_average_precision", None))
    write_run(root / "c", "running")
    write_run(root / "d", "finished", splits={"val": {}})
    (write_run(root / "e", "finished") / "run.json").write_text("{")
    write_run(root / "a" / "copy", "finished")  # in a work directory: no run of its own
    (root / "notes").mkdir()
    return root


def test_every_run_has_its_state_and_figure(tmp_path: pathlib.Path, runs: pathlib.Path) -> None:
    with owned(runs / "c"):
        done = histojax("runs", runs, "--output", tmp_path / "runs.csv")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines[1:]] == [
        ["a", "finished"], ["b/fold_0", "failed"], ["b/fold_1", "interrupted"], ["c", "running"], ["d", "finished"],
        ["e", "damaged"],
    ]  # fmt: skip
    assert " ".join(lines[1][2:]) == "vit official fold 1 40 7 accuracy 0.812 [0.700, 0.900]"
    assert " ".join(lines[3][2:]) == "resnet50 case-disjoint 40 ? mean average precision 0.812 [0.700, 0.900]"
    rows = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert (rows[0]["value"], rows[2]["metric"], rows[3]["value"]) == ("0.8125", "mean_average_precision", "")


def test_a_run_whose_process_is_gone_was_killed(runs: pathlib.Path) -> None:
    assert {row["run"]: row["state"] for row in run_list.find_runs(runs)}["c"] == "killed"  # no owner is left
    with owned(runs / "c"):
        dead = json.loads((runs / "c" / OWNER_FILE).read_text()) | {"start": "0"}
        kept = (runs / "c" / OWNER_FILE).read_text()
        (runs / "c" / OWNER_FILE).write_text(json.dumps(dead))  # another process has taken its number
        assert run_list.find_runs(runs / "c")[0]["state"] == "killed"
        (runs / "c" / OWNER_FILE).write_text(json.dumps(dead | {"machine": "elsewhere"}))
        assert run_list.find_runs(runs / "c")[0]["state"] == "running"
        (runs / "c" / OWNER_FILE).write_text(kept)
    assert not os.path.exists(runs / "c" / OWNER_FILE)


def test_a_folder_without_runs_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RunError, match="nowhere: no such folder"):
        run_list.find_runs(tmp_path / "nowhere")
    with pytest.raises(
        RunError, match=r"no run below this folder; a work directory of `histojax train` has a run\.json"
    ):
        run_list.find_runs(tmp_path)
