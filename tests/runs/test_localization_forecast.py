"""Hours of a benchmark said before its matching, and global descriptors from a file."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from sfm_matchers.confs import Detail, load_conf
from sfm_matchers.errors import InputError
from sfm_matchers.runs import forecast
from sfm_matchers.runs.retrieval import retrieve
from sfm_matchers.runs.workspace import Workspace


class Job(SimpleNamespace):
    """A job whose pairs take a second each, by a clock that only they move."""

    def match_share(self, pairs: list[tuple[str, str]], label: str) -> None:
        self.clock[0] += len(pairs)

    def extract(self, conf: Any, names: list[str]) -> Path:
        self.clock[0] += 2 * len(names)
        path: Path = self.workspace.features(conf)
        return path


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    clock = [0.0]
    monkeypatch.setattr(forecast.time, "monotonic", lambda: clock[0])
    executor = SimpleNamespace(num_workers=1, shares_with_others=False)
    names = [f"db/{index}.jpg" for index in range(1000)]
    return Job(
        clock=clock,
        conf=load_conf("aliked+mambaglue"),
        matching=SimpleNamespace(device="cpu", executor=executor, detail=Detail()),
        workspace=Workspace(tmp_path),
        photos=dict.fromkeys(names),
    )


def test_hours_are_said_by_matcher_and_device(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    names = list(job.photos)
    pairs = [(a, b) for a in names[:40] for b in names[:101] if a != b]
    forecast.announce_localization(job, [*pairs, ("missing.jpg", names[0])], "pairs", 1200)
    (line,) = caplog.messages
    assert line.startswith("4000 pairs of the map and 1200 of queries, about 2.0 hours with ")
    assert "aliked+mambaglue on this device (cpu), 1 s each" in line
    assert "--num_covis and --num_loc; --matcher sift" in line


def test_hours_count_what_tells_places_apart(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    names = list(job.photos)
    pairs = [(a, b) for a in names[:40] for b in names[:101] if a != b]
    job.conf = load_conf("eloftr")
    forecast.announce_localization(job, pairs, "pairs", 1200, 1000)
    (line,) = caplog.messages
    assert "and 1200 of queries, SIFT of up to 1000 photos, about 2.0 hours with " in line
    caplog.clear()
    forecast.announce_localization(job, pairs, "pairs", 1200)
    (line,) = caplog.messages
    assert "of queries, about 86 minutes with " in line


def test_short_work_is_not_announced(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    names = list(job.photos)
    forecast.announce_localization(job, list(itertools.pairwise(names[:200])), "pairs", 10)
    forecast.announce_localization(job, [(names[0], names[1])], "pairs", 100_000)
    assert not caplog.messages


def test_global_descriptors_come_from_a_file(job: Job, tmp_path: Path) -> None:
    path = tmp_path / "global-feats-megaloc.h5"
    with h5py.File(path, "w") as file:
        for index in range(4):
            file[f"db/{index}.jpg/global_descriptor"] = np.eye(4)[index].astype(np.float16)
        file["query/a.jpg/global_descriptor"] = np.array([0, 0.5, 0.1, 0.8], np.float16)
    database = [f"db/{index}.jpg" for index in range(4)]
    pairs, label = retrieve(job, ["query/a.jpg"], database, 2, str(path))
    assert pairs == [("query/a.jpg", "db/3.jpg"), ("query/a.jpg", "db/1.jpg")]
    assert label == "pairs-query-global-feats-megaloc2"
    with pytest.raises(InputError, match=r"no global descriptor of 'query/b.jpg'"):
        retrieve(job, ["query/b.jpg"], database, 2, str(path))
    with pytest.raises(InputError, match="no file"):
        retrieve(job, ["query/a.jpg"], database, 2, "missing.h5")
    with pytest.raises(InputError, match=r"a file of global descriptors"):
        retrieve(job, ["query/a.jpg"], database, 2, "nearest")
