"""How commands end: signals, streams that cannot be written, locales."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.command import run_guarded

pytestmark = pytest.mark.slow

SLOW_JOB = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
from pipelines.command import run_guarded
def job():
    import pycolmap
    try:
        print("begun", flush=True)
        time.sleep(30)
    finally:
        time.sleep(LINGER)
sys.exit(run_guarded(job))
"""


def ended_by(signals: list[signal.Signals], linger: float) -> tuple[int, str]:
    """Exit status and messages of a command that gets signals and takes long to clean up."""
    script = SLOW_JOB.replace("LINGER", str(linger))
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        for number in signals:
            process.send_signal(number)
            time.sleep(0.2)
        _, messages = process.communicate(timeout=10)
    return process.returncode, messages


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_in_one_line(number: signal.Signals, status: int) -> None:
    assert ended_by([number], 0) == (status, "stopped; the same command goes on from here\n")


def test_a_second_signal_ends_it_at_once() -> None:
    start = time.monotonic()
    status, messages = ended_by([signal.SIGINT, signal.SIGINT], 8)
    assert (status, messages) == (130, "stopped\n")
    assert time.monotonic() - start < 8


PAIRS = [sys.executable, "-m", "pipelines.hloc", "pairs_from_exhaustive"]


@pytest.fixture
def pairs_command(tmp_path: Path) -> str:
    (tmp_path / "list.txt").write_text("a.jpg\nb.jpg\n")
    options = ["--image_list", str(tmp_path / "list.txt"), "--output", str(tmp_path / "pairs.txt")]
    return " ".join([*PAIRS, *options])


@pytest.mark.parametrize(
    ("redirection", "status", "message"),
    [
        ("2>&-", 0, ""),
        (">&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("2> /dev/full", 0, ""),
        ("> /dev/full", 2, "error: the output cannot be written: No space left on device\n"),
    ],
)
def test_streams_that_cannot_be_written(
    pairs_command: str, redirection: str, status: int, message: str, tmp_path: Path
) -> None:
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    result = subprocess.run(
        ["sh", "-c", f"{pairs_command} {redirection}"], capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (status, message)
    assert (tmp_path / "pairs.txt").read_text() == "a.jpg b.jpg"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("buffering", ["", "1"])
@pytest.mark.parametrize("command", ["--help", "--version", "sfm --help", "sfm --version", None])
def test_what_stdout_cannot_take_is_not_blamed_on_other_files(
    tmp_path: Path, command: str | None, buffering: str
) -> None:
    script = (
        "from pathlib import Path\n"
        "from pipelines.command import prepare_process, run_command\n"
        "prepare_process()\n"
        "raise SystemExit(run_command(Path('out'), lambda: print(9999 * 'a', flush=True) or 0))\n"
    )
    given = ["-c", script] if command is None else ["-m", "sfm_matchers", *command.split()]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, *given],
            env={**os.environ, "PYTHONUNBUFFERED": buffering, "PYTHONPATH": str(Path.cwd())},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
    message = "error: the output cannot be written: No space left on device\n"
    assert (result.returncode, result.stderr) == (2, message)


def test_a_reader_that_leaves_is_no_error(pairs_command: str) -> None:
    command = f"({pairs_command}; echo $? >&2) | true"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert result.stderr in ("141\n", "0\n")


def test_names_beyond_ascii_in_a_strict_locale(tmp_path: Path) -> None:
    images = tmp_path / "Gr\u00f6\u00dfe"
    images.mkdir()
    for name in ("\u00e4.jpg", "b.jpg"):
        Image.fromarray(np.zeros((32, 48), np.uint8)).save(images / name)
    (tmp_path / "list.txt").write_text("\u00e4.jpg\nb.jpg\n", encoding="utf-8")
    strict = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    output = tmp_path / "Br\u00fccke" / "pairs.txt"
    result = subprocess.run(
        [*PAIRS, "--image_list", str(tmp_path / "list.txt"), "--output", str(output)],
        env={**os.environ, **strict},
        capture_output=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr
    assert output.read_text(encoding="utf-8") == "\u00e4.jpg b.jpg"
    assert str(output) in result.stdout


def test_files_that_may_not_be_read_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> int:
        raise PermissionError(13, "Permission denied", "photos.json")

    assert run_guarded(job) == 2
    assert capsys.readouterr().err == "error: photos.json: Permission denied\n"


def test_a_name_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> int:
        raise FileNotFoundError(2, "No such file", "a\x1b[2J\nb")

    assert run_guarded(job) == 2
    assert capsys.readouterr().err == "error: a\\x1b[2J\\nb: No such file\n"
