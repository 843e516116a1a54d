"""How progress is shown."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from sfm_matchers.machine import progress as module
from sfm_matchers.machine.progress import progress

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def audible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("sfm_matchers"), "level", logging.INFO)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    logging.getLogger("sfm_matchers").manager._clear_cache()  # type: ignore[attr-defined]


def test_a_log_gets_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(progress(range(1000), title="Quick", unit="photo")) == list(range(1000))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0)
    with progress(total=3, title="Matching", unit="pair") as bar:
        for _ in range(3):
            bar.update()
    printed = capsys.readouterr().err
    assert "\r" not in printed
    assert "\x1b" not in printed
    assert all(line.startswith("Matching:") for line in printed.splitlines())
    assert "3/3" in printed.splitlines()[-1]


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    list(progress(range(3), title="Matching", unit="pair"))
    assert "\rMatching" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["notebook", "quiet", "nothing to do"])
def test_elsewhere_nothing_is_shown(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    if where == "notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", module)
    if where == "quiet":
        logging.getLogger("sfm_matchers").setLevel(logging.WARNING)
    count = 0 if where == "nothing to do" else 3
    with progress(total=count, title="Matching", unit="pair") as bar:
        bar.update(count)
    assert capsys.readouterr().err == ""


def test_there_is_no_other_bar_and_no_other_log() -> None:
    ours = [*(ROOT / "sfm_matchers").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]
    texts = {path.name: path.read_text(encoding="utf-8") for path in ours}
    assert [name for name, text in texts.items() if "tqdm(" in text] == ["progress.py"]
    assert [name for name, text in texts.items() if "basicConfig" in text] == []
