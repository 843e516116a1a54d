"""Settings of all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# The tests run in as many processes as there are cores. Threads of several processes that share a
# core wait for each other at every operation. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

GOLDEN = Path(__file__).parent / "golden"
SUBJECTS = {
    "jamma": "jamma",
    "mambaglue": "mambaglue",
    "eloftr": "eloftr",
    "keypoints": "hloc",
    "localization": "hloc",
    "hloc": "hloc",
}


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write no report: where it is not looked at, its pictures cost more than they tell."""
    monkeypatch.setattr(
        "sfm_matchers.runs.reconstruct.write_report",
        lambda outputs, *_: outputs / "report.html",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests on golden data by what they are numbers of."""
    for item in items:
        if GOLDEN in item.path.parents:
            subject = item.path.stem.removeprefix("test_").partition("_")[0]
            item.add_marker("golden")
            item.add_marker(SUBJECTS[subject])
