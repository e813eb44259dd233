"""Programs that the tests fork from a server are processes as a shell starts them."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.helpers import warm_start
from tests.helpers.programs import run

PYTHON = [sys.executable, "-m"]
UNBUFFERED = os.environ | {"PYTHONUNBUFFERED": "1"}
HISTOJAX = [*PYTHON, "histojax"]
# What a forked program finds, printed by a module that is run as `__main__`.
FINDS = """
import atexit, os, sys, threading
from jax._src import xla_bridge

print(__name__, sys.argv[1:], "histojax.training.loop" in sys.modules, "histojax.main" in sys.modules)
print(xla_bridge.backends_are_initialized(), threading.active_count(), os.environ.get("ONLY_HERE"), os.getcwd())
atexit.register(lambda: print("at the end"))
print("an error", file=sys.stderr)
sys.exit("a reason")
"""


def test_code_and_output_are_those_of_a_cold_start() -> None:
    for words in ([*HISTOJAX, "--version"], [*HISTOJAX, "train"], [*HISTOJAX, "cache", "--clear", "none"]):
        warm, cold = warm_start.run(words), run(words)
        assert (warm.returncode, warm.stdout, warm.stderr) == (cold.returncode, cold.stdout, cold.stderr)


def test_it_is_a_main_program_without_devices_and_with_its_own_environment(tmp_path: pathlib.Path) -> None:
    (tmp_path / "finds.py").write_text(FINDS)
    environment = os.environ | {"ONLY_HERE": "yes", "PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    done = warm_start.run([*PYTHON, "finds", "a", "b"], environment=environment)
    assert done.stdout.splitlines() == [
        "__main__ ['a', 'b'] True False",
        f"False 1 yes {warm_start.ROOT}",
        "at the end",
    ]
    assert done.stderr == "an error\na reason\n"
    assert done.returncode == 1
    assert "ONLY_HERE" not in os.environ


def test_signals_reach_it(tmp_path: pathlib.Path) -> None:
    words = [*PYTHON, "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    codes = []
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with open(tmp_path / "out", "w") as out, open(tmp_path / "error", "w") as error:
            process = warm_start.Process(words, out, error, UNBUFFERED)
        try:
            while not (port := re.search(r"port (\d+)", (tmp_path / "out").read_text())):
                assert process.poll() is None
            # It prints its port before it catches Ctrl-C; once it answers, it does.
            urllib.request.urlopen(f"http://127.0.0.1:{port[1]}", timeout=60).close()
            assert pathlib.Path(f"/proc/{process.pid}").is_dir()
            process.send_signal(how)
            codes.append(process.wait(60))
        finally:
            process.kill()
    assert codes == [0, -signal.SIGTERM, -signal.SIGKILL]  # http.server ends by itself at Ctrl-C


def test_a_program_that_runs_too_long_is_killed(tmp_path: pathlib.Path) -> None:
    words = [*PYTHON, "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with pytest.raises(subprocess.TimeoutExpired):
        warm_start.run(words, timeout=1)
