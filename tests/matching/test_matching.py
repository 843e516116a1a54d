"""Plans, shards and who works on them: one result, whatever happens to the workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matching_work import NUM_PHOTOS, AlwaysDies, MeanColor, Work, content
from tqdm import tqdm

from sfm_matchers.errors import InputError, OutputError, PhotoChangedError
from sfm_matchers.files.pair_lists import names_to_pair
from sfm_matchers.matchers.protocols import EncodedImage
from sfm_matchers.matching import (
    InProcess,
    NobodyElse,
    OneOf,
    OnRay,
    Processes,
    executors,
)
from sfm_matchers.matching.executors import WorkersLostError
from sfm_matchers.matching.plan import PAIRS_PER_SHARD, cut, ordered_for_reuse
from sfm_matchers.pairs.policies import exhaustive_pairs

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def work(tmp_path: Path) -> Work:
    image_dir = tmp_path / "photos"
    image_dir.mkdir()
    names = [f"{index}.png" for index in range(NUM_PHOTOS)]
    for index, name in enumerate(names):
        write_photo(image_dir / name, index)
    return Work(image_dir, tmp_path / "out" / "correspondences.h5", names)


def write_photo(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)


@pytest.fixture
def expected(work: Work, tmp_path: Path) -> dict[str, list]:
    alone = Work(work.image_dir, tmp_path / "alone.h5", work.names)
    assert len(alone.run(InProcess())) == len(work.pairs)
    return content(alone.path)


# ---------------------------------------------------------------------------------------------
# The plan


@settings(max_examples=50, deadline=None)
@given(
    numbers=st.sets(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=300),
    num_workers=st.integers(1, 9),
)
def test_every_pair_is_in_one_shard_whatever_the_order(
    numbers: set[tuple[int, int]], num_workers: int
) -> None:
    pairs = [(f"{a:02d}.jpg", f"{b:02d}.jpg") for a, b in numbers]
    wanted = {names_to_pair(*pair): f"of {pair}" for pair in pairs}
    shards = cut(pairs, wanted, num_workers)
    planned = [pair for shard in shards for pair in shard.pairs]
    assert sorted(planned) == sorted(pairs)
    assert max(len(shard.pairs) for shard in shards) <= PAIRS_PER_SHARD
    assert [s.name for s in cut(sorted(pairs), wanted, num_workers)] == [s.name for s in shards]
    assert all(
        set(shard.fingerprints) == {names_to_pair(*p) for p in shard.pairs} for shard in shards
    )


def test_photos_are_used_often_before_they_are_dropped() -> None:
    pairs = exhaustive_pairs([f"{index:03d}.jpg" for index in range(100)])
    kept: list[str] = []
    encoded = 0
    for pair in ordered_for_reuse(pairs):
        for name in pair:
            encoded += name not in kept
            kept = [one for one in kept if one != name][-31:] + [name]
    assert encoded < 0.12 * len(pairs)


# ---------------------------------------------------------------------------------------------
# Who works


def test_processes_give_what_one_gives_though_one_is_killed(
    work: Work, expected: dict[str, list], tmp_path: Path
) -> None:
    done = work.run(Processes(2), killer=tmp_path / "was here")
    assert (tmp_path / "was here").exists()
    assert sorted(done) == sorted(work.pairs)
    assert content(work.path) == expected
    assert work.run(Processes(2)) == []


def test_shards_of_separate_runs_are_merged(work: Work, expected: dict[str, list]) -> None:
    for number in (3, 1):
        work.run(OneOf(number, 3))
    with pytest.raises(InputError, match="not all shards are done"):
        work.run(NobodyElse())
    work.run(OneOf(2, 3))
    assert not work.path.exists()
    work.run(NobodyElse())
    assert content(work.path) == expected


def test_workers_that_always_die_are_given_up(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "LOSSES", 1)
    with pytest.raises(WorkersLostError, match="fewer --workers"):
        work.run(Processes(1), AlwaysDies)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_thirty_kills_at_random_moments_lose_nothing(work: Work, expected: dict[str, list]) -> None:
    random = np.random.default_rng(0)
    done = kills = 0
    while kills < 30:
        child = os.fork()
        if child == 0:
            # Its own lock: killed while it holds the one both share, it would hold it for ever.
            tqdm.set_lock(threading.RLock())
            work.run(InProcess(), seconds=0.03)
            os._exit(0)
        time.sleep(random.uniform(0.05, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        assert stored(work.path) >= done
        done = stored(work.path)
        if work.path.exists():
            assert content(work.path) == expected
            work.path.unlink()
            done = 0
    work.run(InProcess())
    assert content(work.path) == expected


DRIVER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from matching_work import NUM_PHOTOS, Work
    from sfm_matchers.matching import Processes
    if __name__ == "__main__":
        root = Path(sys.argv[2])
        names = [f"{index}.png" for index in range(NUM_PHOTOS)]
        work = Work(root / "photos", root / "out" / "correspondences.h5", names)
        work.run(Processes(2), seconds=0.1)
"""


def test_a_killed_driver_ends_its_workers(
    work: Work, expected: dict[str, list], tmp_path: Path
) -> None:
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    with subprocess.Popen([sys.executable, str(script), str(SUPPORT), str(tmp_path)]) as process:
        begin = time.monotonic()
        while stored(work.path) < 6:
            assert time.monotonic() - begin < 120
            assert process.poll() is None  # it has not ended by itself
            time.sleep(0.02)
        process.kill()
    time.sleep(1)
    done = stored(work.path)
    assert 6 <= done < len(work.pairs)
    time.sleep(1)
    assert stored(work.path) == done
    assert len(work.run(InProcess())) == len(work.pairs) - done
    assert content(work.path) == expected


def stored(path: Path) -> int:
    """How many pairs are safe on disk."""
    parts = path.with_name(path.name + ".parts")
    if path.exists():
        return len(content(path))
    found: set[str] = set()
    with contextlib.suppress(OSError):  # merged and deleted just now
        for part in parts.rglob("*.h5"):
            found |= set(content(part))
    return len(found)


def test_ray_gives_what_one_process_gives(
    work: Work, expected: dict[str, list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setenv("PYTHONPATH", f"{SUPPORT}{os.pathsep}{SUPPORT.parent}")
    try:
        work.run(OnRay("local", 2), killer=tmp_path / "was here")
        assert (tmp_path / "was here").exists()
        assert content(work.path) == expected
        write_photo(work.image_dir / "7.png", 99)
        monkeypatch.setattr(executors, "LOSSES", 1)
        with pytest.raises(WorkersLostError, match="Ray workers"):
            work.run(OnRay("local", 2), AlwaysDies)
    finally:
        ray.shutdown()


# ---------------------------------------------------------------------------------------------
# What changes in the meantime


def test_a_damaged_part_is_thrown_away(
    work: Work, expected: dict[str, list], caplog: pytest.LogCaptureFixture
) -> None:
    work.run(OneOf(1, 1))
    shard = next(work.path.parent.rglob("shard-*.h5"))
    shard.write_bytes(shard.read_bytes()[:1000])
    work.run(InProcess())
    assert content(work.path) == expected
    assert shard.name in caplog.text


def test_a_photo_that_changes_in_between_is_named_and_the_rest_done(work: Work) -> None:
    replacement = work.image_dir.with_name("99.png")
    write_photo(replacement, 99)

    class Changes(MeanColor):
        def encode(inner, image: np.ndarray) -> EncodedImage:  # noqa: N805
            # One step: another thread must not meet a file that is half written.
            with contextlib.suppress(FileNotFoundError):
                replacement.replace(work.image_dir / "7.png")
            (work.image_dir / "8.png").unlink(missing_ok=True)
            return super().encode(image)

    with pytest.raises(PhotoChangedError, match=r"7\.png has changed.*and 1 more"):
        work.run(InProcess(), Changes)
    assert len(content(work.path)) == 7 * 6 / 2
    work.names.remove("8.png")
    assert sorted(work.run(InProcess())) == [(f"{index}.png", "7.png") for index in range(7)]


def test_a_changed_photo_is_matched_again_and_the_others_are_kept(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    work.run(OneOf(1, 2))
    work.run(OneOf(2, 2))
    write_photo(work.image_dir / "4.png", 50)
    caplog.set_level("INFO")
    again = work.run(InProcess())
    assert len(again) == NUM_PHOTOS - 1
    assert all("4.png" in pair for pair in again)
    fresh = Work(work.image_dir, work.path.with_name("fresh.h5"), work.names)
    fresh.run(InProcess())
    assert content(work.path) == content(fresh.path)


def test_a_clock_that_goes_back_changes_nothing(work: Work, expected: dict[str, list]) -> None:
    work.run(OneOf(1, 2))
    for path in work.path.parent.rglob("*"):
        os.utime(path, (0, 0))
    work.run(InProcess())
    assert content(work.path) == expected


def test_a_full_disk_loses_nothing(work: Work, expected: dict[str, list]) -> None:
    """A file system of 128 KiB fills up in the middle."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only the superuser may mount a small file system")
    small = work.path.parent
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)]).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with pytest.raises(OutputError, match="no space is left"):
            work.run(InProcess())
        kept = stored(work.path)
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        assert 0 < kept < len(work.pairs)
        assert len(work.run(InProcess())) == len(work.pairs) - kept
        assert content(work.path) == expected
    finally:
        subprocess.run(["umount", str(small)], check=True)
