"""Shared by all tests: four fake devices, strict numerics, a separate data folder, real images if available."""

import gc
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator

from histojax.core import machine

# Set before jax is imported. Processes that the tests start also keep prepared data and compiled programs here.
_HOME = pathlib.Path(tempfile.mkdtemp(prefix="histojax-tests-"))
os.environ["HISTOJAX_DATA"] = str(_HOME)
# The folder of compiled programs. Pytest's workers and the processes of tests inherit it, and so share it: many build
# the same program again. It stays for the next run of the tests, most of whose time is compilation.
_COMPILED = pathlib.Path("~/.cache/histojax-tests").expanduser() / f"compiled-{machine.instruction_sets()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_COMPILED))
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(_HOME / "hypothesis")
# With two test workers on two cores, spinning PyTorch threads of one worker would slow down the other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Almost half of the suite's time would go into optimizing programs that run once. Processes that tests start inherit
# this; the README's commands, which CI also runs, compile as users do.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Containers often set it. Every process that a test starts would then compile all sources of this repository again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import cv2  # noqa: E402
import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from histojax.models.registry import MODELS  # noqa: E402
from tests.helpers import quick_run  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Building a model compiles dozens of small programs, which other tests need as well.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
# Scanning what was imported, again and again, takes a fifth of the time of tracing.
gc.freeze()
gc.set_threshold(100_000, 20, 20)

# Drawn values are the same in every run, and a busy machine fails no test.
hypothesis.settings.register_profile("histojax", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("histojax")

ROOT = pathlib.Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"


# The longest files start first, so that no worker is left alone with one at the end.
_LONGEST = (
    "bench",
    "processes",
    "chaos",
    "contract",
    "export_timm",
    "runs",
    "slide_e2e",
    "round_trip",
    "e2e",
    "pretrained",
    "dala_resnet_parity",
    "model_error_coverage",
    "ldcsf_e2e",
    "cohort",
)


_MOST_COMPILED = 4 << 30  # bytes; programs of earlier versions stay until then


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the workers of pytest-xdist start later
        _limit_compiled()
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # it orders by the number of tests, not by their time


def _limit_compiled() -> None:
    """Delete the compiled programs of earlier runs once they are many."""
    if _COMPILED.is_dir() and sum(entry.stat().st_size for entry in os.scandir(_COMPILED)) > _MOST_COMPILED:
        shutil.rmtree(_COMPILED, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"{name}_test.py": place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_collection_finish() -> None:
    # The collection after each module would go through all that the tests have imported, half a second each time.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def breakhis_part() -> pathlib.Path:
    """The folder of real BreakHis images, a part of the published archive."""
    folder = SHARED / "BreaKHis_v1_part"
    if not folder.is_dir():
        pytest.skip(f"real images are not available ({folder})")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of synthetic images, five of each of ten patients. Many modules have images of their own instead."""
    return quick_run.images(tmp_path_factory.mktemp("images") / "synthetic", 5)


WriteImages = Callable[..., list[pathlib.Path]]


@pytest.fixture
def write_images() -> WriteImages:
    """Return a function that writes small PNG files of random pixels: `write_images(folder, names, seed=0)`."""

    def write(folder: pathlib.Path, names: list[str], seed: int = 0) -> list[pathlib.Path]:
        rng = np.random.default_rng(seed)
        paths = []
        for name in names:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 256, (23, 35, 3), dtype=np.uint8))
            paths.append(path)
        return paths

    return write


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Free compiled programs after each module: those of all modules together would need 10 GB."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True, scope="module")
def _forget_models() -> Iterator[None]:
    """Forget models that a module of the tests registered: other modules test every registered model."""
    yield
    for name, spec in list(MODELS.items.items()):
        if spec.builder.__module__.startswith("tests."):
            del MODELS.items[name]
            sys.modules.pop(spec.builder.__module__, None)


@pytest.fixture(autouse=True)
def _restore_working_directory() -> Iterator[None]:
    before = os.getcwd()
    yield
    os.chdir(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped parity or multi-device test into a failure in CI: a skipped check proves nothing."""
    report = yield
    if report.skipped and os.environ.get("CI") and any(item.get_closest_marker(m) for m in ("parity", "devices")):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} must not be skipped in CI: {report.longrepr}"
    return report
