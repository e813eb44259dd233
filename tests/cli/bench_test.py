"""`histojax bench` as users run it, and its rounds with sides of a few lines."""

import argparse
import functools
import json
import pathlib
import statistics
import sys
from typing import Any

import pytest

from data_pipelines.synthetic.generator import SyntheticSpec, generate
from histojax.cli.bench import benchmarks, fit, host_input, ours, peers, rounds
from histojax.cli.bench.rounds import WorkerProcess
from histojax.core.errors import RunError
from tests.conftest import ROOT
from tests.helpers.programs import run
from tests.helpers.slide_files import write_pyramid
from tests.helpers.tissue_pictures import tissue_picture

# The command itself imports no jax, so starting it as a process costs little.
BENCH = [sys.executable, "-m", "histojax", "bench"]
SMALL = ["--batch_size=2", "--image_size=32", "--rounds=2", "--round_seconds=0.2"]
LDCSF = {"depths": [1, 1], "embed_dim": 24, "heads": [1, 2], "ldc": "none", "resnet_blocks": 1}
VIT = {"image_size": 32, "patch": 8, "embed_dim": 32, "depth": 1, "heads": 2}
# It only waits; "die", "break" and "refuse" in place of a time make it fail.
SIDE = """
import os, subprocess, sys, time
from histojax.cli.bench import worker
from histojax.core.errors import RunError

class Side:
    def __init__(self, spec):
        if spec["wait"] == "refuse":
            raise RunError("there is no such thing")
        self.wait = spec["wait"]
        if spec["work"]:
            self.worker = subprocess.Popen([sys.executable, "-c", spec["work"]])
        self.since = time.perf_counter()
        before = bytearray(1 << 28)
        del before
        print("a library speaks")

    def facts(self):
        return {"ready": True}

    def run(self, repeats):
        if self.wait == "die":
            os.kill(os.getpid(), 9)
        if self.wait == "break":
            raise ValueError("broken inside")
        idle, self.since = time.perf_counter() - self.since, time.perf_counter()
        stale = 0.3 if idle > 0.4 else 0  # as memory that went back to the host
        time.sleep(self.wait * repeats + stale)
        self.since = time.perf_counter()
        return {"seconds": self.wait * repeats + stale, "images": 10 * repeats}

    def memory(self):
        meanwhile = bytearray(self.wait if isinstance(self.wait, int) else 0)
        del meanwhile
        return {"bytes": worker.memory_peak(), "of": "process"}

worker.serve(Side)
"""


def side(name: str, wait: object, work: str = "") -> WorkerProcess:
    spec = {"wait": wait, "work": work}
    return WorkerProcess(name, [sys.executable, "-c", SIDE], spec, {"PYTHONPATH": str(ROOT)})


def bench(folder: pathlib.Path, *words: str) -> tuple[dict[str, Any], str]:
    done = run([*BENCH, *words, *SMALL, f"--json={folder / 'bench.json'}"])
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "bench.json").read_text()), done.stdout


def positive(tree: Any) -> bool:
    if isinstance(tree, dict):
        return all(positive(value) for key, value in tree.items() if key != "others")
    if isinstance(tree, list):
        return bool(tree) and all(positive(value) for value in tree)
    return isinstance(tree, str | bool) or tree > 0


def check_ratio(result: dict[str, Any], ours: str, peer: str) -> None:
    rates = [[one["images_per_second"] for one in result["contestants"][name]["rounds"]] for name in (ours, peer)]
    ratio = result["ratios"][peer]
    assert len(rates[0]) == len(rates[1]) == 2
    assert ratio["of_medians"] == pytest.approx(statistics.median(rates[0]) / statistics.median(rates[1]))
    assert ratio["rounds"] == [pytest.approx(a / b) for a, b in zip(*rates, strict=True)]


def test_overlapping_compilations_count_once() -> None:
    assert ours.covered_seconds([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 2.5)]) == 4


@pytest.mark.slow
@pytest.mark.parity
def test_step_against_torch(tmp_path: pathlib.Path) -> None:
    words = ["step", "--model=ldcsf", f"--options={json.dumps(LDCSF)}", "--against=torch", "--peer_dtype", "float32"]
    whole, shown = bench(tmp_path, *words, "bfloat16", f"--profile={tmp_path / 'traces'}")
    (result,) = whole["results"]
    names = ["histojax float32", "torch float32", "torch bfloat16"]
    assert list(result["contestants"]) == names
    assert positive(result)
    first = result["contestants"][names[0]]
    for peer in names[1:]:
        check_ratio(result, names[0], peer)
        assert f"{names[0]} / {peer}: {result['ratios'][peer]['of_medians']:.3f}" in shown
    for row in result["contestants"].values():
        rate = row["images_per_second"]["median"]
        for one in row["rounds"]:
            assert one["seconds"] * one["images_per_second"] == pytest.approx(2), "batches of two"
        assert row["flops_per_second"] == pytest.approx(rate * result["flops_per_image"])
        assert 0 < row["share_of_matmul"] < 1
        assert 1e8 < row["memory_bytes"] < 1e10
    assert first["cold_start_seconds"] > first["compile_seconds"] > 0.5
    assert first["cold_start_seconds"] > first["start_seconds"], "the second start found no compiled programs"

    folder = pathlib.Path(result["profile"]["folder"])
    assert folder.parent == tmp_path / "traces"
    assert list(folder.glob("plugins/profile/*/*.trace.json.gz"))
    assert "dot_general, backward" in result["profile"]["table"]
    assert result["profile"]["table"] in shown


@pytest.mark.slow
def test_prediction_only(tmp_path: pathlib.Path) -> None:
    whole, shown = bench(tmp_path, "infer", "--model=vit", f"--options={json.dumps(VIT)}", "--skip_startup")
    (result,) = whole["results"]
    (row,) = result["contestants"].values()
    assert result["ratios"] == {}
    assert row["cold_start_seconds"] is row["compile_seconds"] is row["start_seconds"] is None
    assert positive(row["images_per_second"])
    assert whole["machine"]["cores"] >= 1
    assert "cold s" not in shown


@pytest.mark.slow
def test_find_batch_reports_the_largest_batch_that_fits(tmp_path: pathlib.Path) -> None:
    words = ["infer", "--model=vit", f"--options={json.dumps(VIT)}", "--skip_startup", "--find_batch"]
    whole, shown = bench(tmp_path, *words, "--memory_gib=0.02")
    found = whole["results"][0]["fit"]
    assert found["batch_size"] > 2
    assert found["batch_size"] % 2 == 0, "it divides among two devices"
    assert found["limit_bytes"] == int(0.02 * (1 << 30))
    assert 0.9 < found["foretold_bytes"] / found["limit_bytes"] <= 1.01
    assert f"largest batch: {found['batch_size']} images" in shown


def test_find_batch_refuses_a_limit_below_the_smallest_batch() -> None:
    spec = {"work": "step", "model": "vit", "options": VIT, "batch_size": 2, "image_size": 32, "cpu_devices": 2}
    spec |= {"dtype": "float32", "remat": False, "optimizer": "adamw"}
    with pytest.raises(RunError, match=r"a batch of 2 needs 0\.0\d+ GiB of 0\.0001 GiB"):
        fit.largest_batch(benchmarks._histojax(), spec, {}, 0.0001)


@pytest.mark.slow
@pytest.mark.parity
def test_input_against_torch(tmp_path: pathlib.Path) -> None:
    spec = SyntheticSpec(cases_per_subtype=(1,) * 8, images_per_patient=1, magnifications=("100X",))
    root = generate(tmp_path / "images", spec)
    whole, shown = bench(tmp_path, "input", f"--root={root}", "--against=torch")
    (result,) = whole["results"]
    assert result["images"] == 9  # every eighth case has two patients
    assert "input: 9 images of" in shown
    assert positive(result)
    check_ratio(result, "histojax", "torch DataLoader")
    cached, _ = bench(tmp_path, "input", f"--root={root}", "--cache=resized", "--crop_scale=1")
    assert cached["settings"]["cache"] == "resized"
    assert positive(cached["results"])


@pytest.fixture(scope="module")
def few_images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    spec = SyntheticSpec(cases_per_subtype=(1,) * 8, images_per_patient=1, magnifications=("100X",))
    return generate(tmp_path_factory.mktemp("few") / "images", spec)


@pytest.mark.slow
def test_input_of_a_host_with_several_processes(tmp_path: pathlib.Path, few_images: pathlib.Path) -> None:
    words = ["input", f"--root={few_images}", "--cache=resized", "--crop_scale=1", "--processes=2", "--threads=4"]
    whole, shown = bench(tmp_path, *words, f"--cache_dir={tmp_path / 'local'}", "--step=0.001")
    assert list((tmp_path / "local").glob("*.pixels"))
    (result,) = whole["results"]
    row = result["contestants"]["histojax"]
    assert (result["processes"], row["threads"], row["workers"]) == (2, 2, 0)
    assert len(row["rounds"]) == 2
    for one in row["rounds"]:
        assert len(one["per_process"]) == 2
        assert one["images_per_second"] == pytest.approx(sum(one["per_process"]))
        assert one["per_core"] == pytest.approx(one["images_per_second"] / result["host_cores"])
        assert one["per_processor_second"] == pytest.approx(one["images_per_second"] / one["cores"])
    rate = row["images_per_second"]["median"]
    assert result["step"]["needed"] == pytest.approx(2 / 1e-6)
    assert result["step"]["headroom"] == pytest.approx(rate / result["step"]["needed"])
    assert f"per host: {rate:,.0f} images/s" in shown
    assert f"needs 2,000,000 images/s; this host delivers {rate:,.0f}: it starves, and waits" in shown
    slow = result | {"step": result["step"] | {"needed": rate / 3, "headroom": 3.0}}
    assert host_input.text(slow)[-1].endswith(f"this host delivers {rate:,.0f}: headroom 3.0")


def test_processes_of_a_host_read_disjoint_shares_of_every_batch(few_images: pathlib.Path) -> None:
    args = {
        "batch_size": 6,
        "image_size": 32,
        "crop_scale": 1.0,
        "colour_jitter": 0.0,
        "cache": "none",
        "cache_dir": "",
    }
    args |= {"workers": 0, "threads": 1, "peer_workers": 0, "root": few_images}
    spec = benchmarks.input_spec(argparse.Namespace(**args))
    one, *parts = (ours._Input(spec | {"share": share}) for share in ([0, 1], [0, 3], [1, 3], [2, 3]))
    for _ in range(3):
        batch, *shares = (next(reader._batches) for reader in (one, *parts))
        assert [len(share["index"]) for share in shares] == [2, 2, 2]
        assert batch["index"].tolist() == [index for share in shares for index in share["index"]]


@pytest.mark.slow
def test_slide_against_deepzoom(tmp_path: pathlib.Path) -> None:
    path = write_pyramid(tmp_path / "slide.tif", tissue_picture(1500, 1500), 0.5)
    words = ["slide", str(path), "--against=deepzoom", "--batch_size=8", "--image_size=224"]
    done = run([*BENCH, *words, "--rounds=2", "--round_seconds=0.2", f"--json={tmp_path / 'bench.json'}"])
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert list(result["contestants"]) == ["histojax", "deepzoom", "deepzoom, 2 threads"]
    assert positive(result["contestants"])
    for peer in ("deepzoom", "deepzoom, 2 threads"):
        check_ratio(result, "histojax", peer)
    assert f"slide: {result['images']} tissue tiles of 0.5 µm/px of {path}" in done.stdout
    done = run([*BENCH, "slide", str(tmp_path / "none.svs")])
    assert done.returncode == 1
    assert "none.svs" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["step", "--model=alexnet"], "unknown model 'alexnet'"),
        (["step", "--model=resnet50", "--batch_size=3"], "--batch_size=3 does not divide among 2 devices"),
        (["input", "--root=/none"], "/none: no such file or folder"),
        (["input", "--root=/none", "--cache=resized"], "use crop_scale=1.0 or cache=decoded"),
        (["input", "--processes=3"], "--batch_size=16 does not divide among 3 processes"),
        (["input", "--processes=2", "--against=torch"], "drop --against"),
        (["input", "--step=5"], "--step: has an effect only with --processes"),
        (["infer", "--rounds=0"], "argument --rounds: 0 is not at least 1"),
        (["infer", "--options={"], "argument --options: '{' is not a JSON object"),
    ],
)
def test_user_errors_have_a_message(words: list[str], message: str) -> None:
    done = run([*BENCH, *words])
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parity
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "vit"}, "--against torch supports only resnet50"),
        ({"options": {"depth": 3}}, "not supported by the PyTorch ldcsf"),
    ],
)
def test_unsupported_torch_models_and_options_are_named(fields: dict[str, Any], message: str) -> None:
    spec = {"work": "step", "model": "ldcsf", "options": {}, "dtype": "float32", "compile": False, "device": "cpu"}
    spec |= {"cores": 1, "batch_size": 2, "image_size": 32, "optimizer": "sgd"}
    with pytest.raises(RunError, match=message):
        peers.start_torch("torch", spec | fields, {})


def test_sides_take_turns_and_no_drift_favours_one() -> None:
    said: list[str] = []
    with side("slow", 0.02) as slow, side("fast", 0.01) as fast:
        assert slow.facts["start_seconds"] > 0
        measured = rounds.measure([slow, fast], 2, 0.04, said.append)
        assert slow.ask(ask="memory")["bytes"] > 1 << 20
    assert [line.split("  ")[1].split(":")[0] for line in said] == ["slow", "fast", "fast", "slow"]
    assert [one["repeats"] for one in measured["slow"] + measured["fast"]] == [2, 2, 4, 4]
    rates = [one["images_per_second"] for one in measured["slow"]]
    assert rates == [pytest.approx(500)] * 2, "what a side does after a pause is not of the round"
    assert rounds.ratio(measured["slow"], measured["fast"])["of_medians"] == pytest.approx(0.5)
    if sys.platform == "linux":
        assert measured["fast"][0]["cores"] < 0.5, "sleeping is no work"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_work_of_a_side_and_of_other_programs_is_separated() -> None:
    work = "import time\nwhile time.process_time() < 6: pass"
    with side("idle", 0.25) as idle, side("busy", 0.25, work) as busy:
        measured = rounds.measure([idle, busy], 1, 0.25, lambda line: None)
    assert measured["idle"][0]["cores"] < 0.1 < measured["idle"][0]["others"]
    assert measured["busy"][0]["cores"] > 0.1, "what a process that it started does is its own work"


def test_memory_counts_from_the_first_repeat() -> None:
    with side("lean", 0) as lean, side("fat", 1 << 27) as fat:
        difference = fat.ask(ask="memory")["bytes"] - lean.ask(ask="memory")["bytes"]
    assert difference == pytest.approx(1 << 27, rel=0.1)


@pytest.mark.parametrize(
    ("wait", "message"),
    [
        ("refuse", "^it: there is no such thing$"),
        ("die", "it was killed by signal 9; perhaps the machine ran out of memory"),
        ("break", "it ended with code 1\n(.*\n)*ValueError: broken inside"),
    ],
)
def test_failures_of_a_side_are_reported(wait: str, message: str) -> None:
    with pytest.raises(RunError, match=message), side("it", wait) as one:
        one.ask(ask="run", repeats=1)


@pytest.mark.parametrize("missing", ["torch", "torchvision", "timm", "openslide"])
def test_a_missing_library_of_the_peer_is_reported_before_anything_starts(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == missing else name)
    monkeypatch.setattr(benchmarks, "WorkerProcess", lambda *_: pytest.fail("a process was started"))
    args = argparse.Namespace(against="deepzoom" if missing == "openslide" else "torch")
    compiled = functools.partial(benchmarks.compiled, args, "resnet50")
    starts = [lambda: benchmarks.slide(args)] if missing == "openslide" else [compiled, lambda: benchmarks.images(args)]
    for measure in starts:
        with pytest.raises(RunError, match=f"--against {args.against}: {missing} not installed"):
            measure()


def test_spread_and_ratio() -> None:
    assert rounds.spread([1.0, 2.0, 3.0, 4.0, 50.0]) == {"median": 3.0, "q25": 2.0, "q75": 4.0}
    assert rounds.spread([7.0]) == {"median": 7.0, "q25": 7.0, "q75": 7.0}
    ours = [{"images_per_second": rate} for rate in (10.0, 30.0, 20.0)]
    theirs = [{"images_per_second": rate} for rate in (10.0, 10.0, 5.0)]
    ratio = rounds.ratio(ours, theirs)
    assert ratio["of_medians"] == 2.0
    assert ratio["rounds"] == [1.0, 3.0, 4.0]
    assert ratio["paired"]["median"] == 3.0
