"""`histojax doctor`: its findings on this machine, and on machines with a fault."""

import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest

from histojax.cli.doctor import checks, devices
from tests.conftest import ROOT
from tests.helpers.launch_scripts import LOCAL, run_script

DOCTOR = [sys.executable, "-m", "histojax", "doctor"]
OWN_CACHE = {"JAX_COMPILATION_CACHE_DIR": ""}  # as for a user, below the data directory; the tests name another folder


def _checks(*words: object, **environment: str) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Run doctor; return the exit code and the findings by check."""
    done = run_script([*DOCTOR, "--json", *map(str, words)], **OWN_CACHE | environment)
    assert "Traceback" not in done.stderr, done.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for one in json.loads(done.stdout)["checks"]:
        found.setdefault(one["check"], []).append(one)
    return done.returncode, found


@pytest.fixture
def gpu_in_dev(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder like /dev on a host with two GPUs."""
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / name).touch()
    return tmp_path


def test_a_healthy_machine(tmp_path: pathlib.Path) -> None:
    (tmp_path / "work").mkdir()
    began = time.monotonic()
    environment = OWN_CACHE | {"HISTOJAX_DATA": str(tmp_path / "new" / "data")}
    done = run_script([*DOCTOR, "--workdir", str(tmp_path / "work")], **environment)
    assert time.monotonic() - began < 15
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert all(re.match(r"(ok|warn) +\S", line) for line in lines[:-1]), done.stdout
    named = {re.split(r"\s{2,}", line)[1].strip() for line in lines[:-1]}
    assert named >= {"devices", "all-reduce", "versions", "memory", "open files", "shared memory"}
    assert named >= {"work directory", "data directory", "compile cache"}
    # The test files are removed; programs compiled by jax stay in their cache.
    assert list((tmp_path / "work").iterdir()) == []
    assert all(path.name.startswith("compiled-") for path in (tmp_path / "new" / "data").iterdir())
    assert not list(tmp_path.rglob(".histojax-doctor-*"))


def test_json_has_the_facts_as_numbers(tmp_path: pathlib.Path) -> None:
    import jax

    code, found = _checks("--workdir", tmp_path, HISTOJAX_DATA=str(tmp_path), JAX_PLATFORMS="cpu")
    assert code == 0
    assert found["versions"][0]["facts"]["jax"] == jax.__version__
    assert found["devices"][0]["facts"] == {"platform": "cpu", "kind": "cpu", "local": 2, "all": 2}
    rates = found["all-reduce"][0]["facts"]["bytes_per_second"]
    assert list(rates) == ["4096", "1048576", "16777216"]
    assert all(rate > 0 for rate in rates.values())
    assert found["memory"][0]["facts"]["cores"] == len(os.sched_getaffinity(0))
    disk = found["work directory"][0]["facts"]
    assert disk["free_bytes"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert min(disk["write_bytes_per_second"], disk["read_bytes_per_second"]) > 0


@pytest.mark.devices
def test_two_processes_exchange_a_sum(tmp_path: pathlib.Path) -> None:
    words = ["-n", "2", "--devices-per-process", "2", "--module", "histojax", "--", "doctor", "--workdir", tmp_path]
    done = run_script([*LOCAL, *map(str, words)], HISTOJAX_DATA=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    for index in (0, 1):
        assert f"[{index}] process {index} of 2" in done.stdout
        assert re.search(rf"\[{index}\] ok +all-reduce +right over 4 devices in 2 processes; 4 KiB: ", done.stdout)


def test_an_incomplete_membership_and_a_missing_process(tmp_path: pathlib.Path) -> None:
    where = {"HISTOJAX_DATA": str(tmp_path), "HISTOJAX_NUM_PROCESSES": "2", "HISTOJAX_PROCESS_ID": "1"}
    code, found = _checks("--workdir", tmp_path, **where)
    assert (code, found["processes"][0]["level"]) == (1, "fail")
    assert "HISTOJAX_COORDINATOR" in found["processes"][0]["text"]
    where |= {"HISTOJAX_COORDINATOR": "127.0.0.1:9", "HISTOJAX_START_TIMEOUT": "1"}
    code, found = _checks("--workdir", tmp_path, **where)
    assert code == 1
    assert "127.0.0.1:9" in found["processes"][0]["text"]
    assert "memory" in found  # the other checks still run


def test_folders_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    nowhere = tmp_path / "file" / "folder"
    code, found = _checks("--workdir", nowhere, HISTOJAX_DATA=str(nowhere))
    assert code == 1
    for name in ("work directory", "data directory"):
        assert found[name][0]["level"] == "fail"
        assert f"{nowhere}: cannot be written (Not a directory)" in found[name][0]["text"]
    assert found["compile cache"][0]["level"] == "warn"
    assert "every start recompiles" in found["compile cache"][0]["text"]


def test_a_disk_that_is_full(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_GIB", shutil.disk_usage(tmp_path).free * 2)  # raises what counts as enough free space
    found = checks.disk("work directory", str(tmp_path))
    assert found.level == "fail"
    assert "too little" in found.text


def test_a_missing_platform(tmp_path: pathlib.Path) -> None:
    code, found = _checks("--workdir", tmp_path, HISTOJAX_DATA=str(tmp_path), JAX_PLATFORMS="tpu")
    assert (code, found["devices"][0]["level"]) == (1, "fail")
    assert "JAX_PLATFORMS=tpu" in found["devices"][0]["text"]
    assert "all-reduce" not in found


def test_accelerators_that_jax_does_not_use(
    gpu_in_dev: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.path.exists("/dev/nvidia0"):
        pytest.skip("this machine has a GPU")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    unseen = devices.devices(gpu_in_dev, tmp_path / "none")[1]
    assert unseen.level == "fail"
    assert unseen.facts["unseen"] == [str(gpu_in_dev / "nvidia0"), str(gpu_in_dev / "nvidia1")]
    assert "jax computes on the CPU" in unseen.text
    assert "pip install 'histojax[cuda]'" in unseen.text
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    wanted = devices.devices(gpu_in_dev, tmp_path / "none")[1]
    assert wanted.level == "warn"
    assert "JAX_PLATFORMS=cpu excludes them: unset it" in wanted.text


def test_a_tpu_is_distinguished_from_other_google_devices(tmp_path: pathlib.Path) -> None:
    dev, sys_ = tmp_path / "dev", tmp_path / "sys"
    (dev / "vfio").mkdir(parents=True)
    for name in ("0", "1", "vfio"):
        (dev / "vfio" / name).touch()
    card = sys_ / "bus" / "pci" / "devices" / "0000:00:05.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text("0x1ae0\n")
    (card / "device").write_text("0x0042\n")  # a network card
    assert devices.accelerators(dev, sys_) == {}
    (card / "device").write_text("0x0063\n")
    assert devices.accelerators(dev, sys_) == {"tpu": [str(dev / "vfio" / "0"), str(dev / "vfio" / "1")]}
    (dev / "accel0").touch()
    assert devices.accelerators(dev, sys_) == {"tpu": [str(dev / "accel0")]}


def test_a_wrong_sum_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    assert devices.all_reduce()[0].level == "ok"
    right = jax.jit

    def broken(function: Any, **options: Any) -> Any:
        return right(lambda x: function(x).at[..., 3].add(1), **options)

    monkeypatch.setattr(devices.jax, "jit", broken)
    found = devices.all_reduce()[0]
    assert found.level == "fail"
    assert "is wrong in 1 of 1024 places" in found.text
    assert "(11.0, not 10.0)" in found.text


def test_breakhis_images_are_recognised(breakhis_part: pathlib.Path) -> None:
    found = checks.data_root(str(breakhis_part))
    assert found.level == "ok"
    assert found.facts["layout"] == "breakhis"
    assert found.facts["images"] == sum(1 for path in breakhis_part.rglob("*.png")) == 229
    assert found.facts["magnifications"]["100X"] == 140
    assert json.loads(json.dumps(found.facts))  # for --json


def test_tiles_tables_archives_and_unusable_roots(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "tiles"
    for name in ("tumor/a.png", "tumor/b.png", "necrosis/c.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not read")
    found = checks.data_root(str(root))
    assert (found.level, found.facts["layout"], found.facts["images"]) == ("ok", "folders", 3)
    (root / "t.csv").write_text("path,interstitial,necrosis,non_tumor,tumor\ntumor/a.png,0,0,0,1\nlost.png,0,0,0,1\n")
    for path in (root, root / "t.csv"):
        found = checks.data_root(str(path))
        assert (found.level, found.facts["layout"], found.facts["unusable"]) == ("warn", "table", 1)
        assert "lost.png" in found.text
    (tmp_path / "images.tar.gz").write_bytes(b"\x1f\x8b" + bytes(3000))
    found = checks.data_root(str(tmp_path / "images.tar.gz"))
    assert (found.level, found.facts) == ("ok", {"layout": "archive", "bytes": 3002})
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("empty", "Found no image"),
        ("nowhere", "no such file or folder"),
        ("tiles/tumor/a.png", "none of .tar.gz"),
    ):
        found = checks.data_root(str(tmp_path / name))
        assert found.level == "fail"
        assert words in found.text
    assert (
        run_script([*DOCTOR, "--workdir", str(tmp_path), "--data_root", "/x"], HISTOJAX_DATA=str(tmp_path)).returncode
        == 1
    )


def test_versions_that_do_not_fit() -> None:
    assert checks._mismatches({"jax": "0.10.2", "jaxlib": "0.10.2"}) == []
    (found,) = checks._mismatches({"jax": "0.10.2", "jaxlib": "0.10.1"})
    assert found.level == "warn"
    assert "pip install 'jax==0.10.2' 'jaxlib==0.10.2'" in found.text
    (found,) = checks._mismatches({"jax": "0.10.2", "jaxlib": "0.10.2", "jax-cuda12-plugin": "0.9.0"})
    assert (found.level, "jax-cuda12-plugin 0.9.0 with jaxlib 0.10.2" in found.text) == ("fail", True)


def test_installed_versions_are_compared_with_the_requirements(tmp_path: pathlib.Path) -> None:
    """An older optax earlier on the path, as `pip install 'optax<0.2'` would leave it."""
    info = tmp_path / "site" / "optax-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: optax\nVersion: 0.1.0\n")
    code, found = _checks("--workdir", tmp_path, HISTOJAX_DATA=str(tmp_path), PYTHONPATH=str(tmp_path / "site"))
    assert code == 0
    warned = [one["text"] for one in found["versions"] if one["level"] == "warn"]
    assert len(warned) == 1
    assert warned[0].startswith("optax 0.1.0 is not a version that histojax supports: pip install 'optax")


def test_limits_of_files_and_of_shared_memory(tmp_path: pathlib.Path) -> None:
    files = checks.limits(tmp_path)[0]
    assert files.facts["soft"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    missing = checks.limits(tmp_path / "none")[1]
    assert missing.level == "warn"
    assert "data.workers" in missing.text
    few = subprocess.run(
        ["bash", "-c", 'ulimit -n 256 && exec "$0" "$@"', *DOCTOR, "--workdir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"HISTOJAX_DATA": str(tmp_path)},
    )
    assert (
        "warn  open files      at most 256: checkpoints and data.workers need about 1024; run ulimit -n" in few.stdout
    )
    assert few.returncode == 0


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HISTOJAX_DATA")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 123456)
    finding = checks.data_directory()
    assert (finding.check, finding.level) == ("data directory", checks.FAIL)
    assert "set HISTOJAX_DATA to a folder" in finding.text
