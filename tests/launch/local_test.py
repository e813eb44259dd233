"""local.sh with real processes: places in the run, line prefixes, the first failure, signals, exit codes."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

import pytest

from tests.helpers.launch_scripts import LOCAL, WORDS, run_script


def test_local_dry_run() -> None:
    words = ["-n", "2", "--devices-per-process", "3", "--gpus-per-process", "2", "--port", "4711", "--dry-run", *WORDS]
    done = run_script([*LOCAL, *words], CUDA_VISIBLE_DEVICES="4,5,6,7", XLA_FLAGS="--xla_a=1")
    first, second = done.stdout.splitlines()
    for line, index, gpus in ((first, 0, "4,5"), (second, 1, "6,7")):
        assert f"HISTOJAX_COORDINATOR=127.0.0.1:4711 HISTOJAX_NUM_PROCESSES=2 HISTOJAX_PROCESS_ID={index} " in line
        assert f"CUDA_VISIBLE_DEVICES={gpus} " in line
        assert "'XLA_FLAGS=--xla_a=1 --xla_force_host_platform_device_count=3'" in line
        assert line.endswith(r"-m histojax.main --config c.py --workdir '/gcs/b/it'\''s a run'")


def test_local_gives_each_process_its_place(program: Mapping[str, str], tmp_path: pathlib.Path) -> None:
    words = ["-n", "2", "--gpus-per-process", "1", "--module", "small_program", "--log-dir", str(tmp_path / "logs")]
    done = run_script([*LOCAL, *words, "--", "end"], **program, CUDA_VISIBLE_DEVICES="3,1")
    assert done.returncode == 0, done.stderr
    shown = sorted(line for line in done.stdout.splitlines() if "words" not in line)
    assert [re.sub(r":\d+ ", ":PORT ", line) for line in shown] == [
        "[0] process 0 of 2 at 127.0.0.1:PORT sees 3 None",
        "[1] process 1 of 2 at 127.0.0.1:PORT sees 1 None",
    ]
    assert (tmp_path / "logs" / "process-1.log").read_text().startswith(shown[1].removeprefix("[1] ") + "\n")


def test_local_ends_all_when_one_fails_and_shows_its_last_lines(program: Mapping[str, str]) -> None:
    began = time.monotonic()
    done = run_script([*LOCAL, "-n", "3", "--grace", "1", "--module", "small_program", "--", "fail"], **program)
    assert time.monotonic() - began < 15
    assert done.returncode == 1
    messages = done.stderr.split("local.sh: ")
    assert messages[1].startswith("process 1 of 3 failed first, with exit code 1. Its last lines:")
    assert "  error: images.csv: no such file" in messages[1]
    assert messages[2:4] == ["process 0 ended with exit code 137\n", "process 2 ended with exit code 137\n"]
    logs = pathlib.Path(messages[-1].removeprefix("full logs: ").strip())
    assert "error: images.csv" in (logs / "process-1.log").read_text()  # kept


@pytest.mark.parametrize(("how", "code"), [("again", 75), ("mixed", 3)])
def test_local_exits_with_75_only_if_no_other_code_occurred(program: Mapping[str, str], how: str, code: int) -> None:
    done = run_script([*LOCAL, "-n", "2", "--module", "small_program", "--", how], **program)
    assert done.returncode == code
    kept = list(pathlib.Path(program["TMPDIR"]).iterdir())
    assert bool(kept) == (code == 3)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_local_forwards_a_signal_to_all(program: Mapping[str, str], how: signal.Signals) -> None:
    # A shell that runs the tests in the background makes their children ignore SIGINT; undo that.
    restore_sigint = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    words = [sys.executable, "-c", restore_sigint, *LOCAL, "-n", "2", "--module", "small_program", "--", "stop"]
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | program,
    ) as process:
        assert process.stdout
        ready = 0
        while ready < 2:
            line = process.stdout.readline()
            assert line
            ready += "ready" in line
        process.send_signal(how)
        shown, _ = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "[0] saved 0" in shown
    assert "[1] saved 1" in shown
    assert "rerun the same command to resume" in shown
