"""Photos are encoded few times, in bounded memory; batches become smaller where it is short."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from material import photo_fingerprints

from sfm_matchers.confs import DetectorFreeConf, DetectorFreePreprocessing
from sfm_matchers.errors import NotEnoughMemoryError
from sfm_matchers.machine import memory
from sfm_matchers.matchers.batching import FittingBatches, is_out_of_memory
from sfm_matchers.matchers.protocols import Arrays, EncodedImage, Matches, SparseMatches
from sfm_matchers.matchers.quarter_turns import Agreement
from sfm_matchers.matching import at_hand, engine, match_images
from sfm_matchers.matching.at_hand import Kept, bytes_to_keep
from sfm_matchers.matching.plan import ordered_for_room
from sfm_matchers.pairs.policies import exhaustive_pairs

NUM_PHOTOS = 32
ENCODED_BYTES = 1_000_000  # as the stand-in says; the photos themselves have a hundredth
CPU_MESSAGE = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate"


class Encoding:
    """What a network knows of a photo; counts how many are alive."""

    alive = 0
    most_alive = 0

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        Encoding.alive += 1
        Encoding.most_alive = max(Encoding.alive, Encoding.most_alive)

    def __del__(self) -> None:
        Encoding.alive -= 1


class Counting:
    """Stands in for a network on a GPU: counts encodings and pairs of a batch."""

    batch_size = 8
    resize_max = 10_000

    def __init__(self, largest_batch: int = 8, error: Exception | None = None) -> None:
        self.largest_batch, self.error = largest_batch, error
        self.encoded: Counter[tuple[int, ...]] = Counter()
        self.batches: list[int] = []
        Encoding.most_alive = Encoding.alive = 0

    def encode(self, image: np.ndarray) -> EncodedImage:
        self.encoded[image.shape[:2]] += 1
        size = (image.shape[1], image.shape[0])
        return EncodedImage(Encoding(image.shape), (1.0, 1.0), ENCODED_BYTES, size)

    def match_batch(self, pairs: Sequence[tuple[EncodedImage, EncodedImage]]) -> list[Matches]:
        if len(pairs) > self.largest_batch:
            raise self.error or torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 1 GiB"
            )
        assert len({tuple(image.network_size for image in pair) for pair in pairs}) == 1
        self.batches.append(len(pairs))
        return [self.match_encoded(*pair) for pair in pairs]

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        heights = [image.features.shape[0] for image in (image0, image1)]
        points = [np.full((80, 2), height, np.float32) for height in heights]
        return Matches(*points, np.ones(80, np.float32))


def write_photos(folder: Path, heights: Sequence[int]) -> list[str]:
    names = [f"{index:02d}.png" for index in range(len(heights))]
    for name, height in zip(names, heights, strict=True):
        cv2.imwrite(str(folder / name), np.full((height, 40, 3), height, np.uint8))
    return names


def run(matcher: Counting, folder: Path, names: Sequence[str], **steps: bool) -> Path:
    preprocessing = DetectorFreePreprocessing(**steps)
    model = {"name": "counting"}
    conf = DetectorFreeConf(
        "counting", "matches", model, max_error=1, cell_size=1, preprocessing=preprocessing
    )
    path = folder / "out" / "correspondences.h5"
    wanted = photo_fingerprints(folder, names)
    done = match_images(conf, lambda: matcher, exhaustive_pairs(names), folder, wanted, path)
    assert len(done) == len(names) * (len(names) - 1) // 2
    return path


def keep(monkeypatch: pytest.MonkeyPatch, photos: float) -> None:
    monkeypatch.setattr(engine, "bytes_to_keep", lambda device: int(photos * ENCODED_BYTES))


@pytest.mark.slow
@pytest.mark.parametrize(("room", "most"), [(40, 32), (18, 96), (9, 192)])
def test_photos_of_different_sizes_are_encoded_few_times_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, most: int
) -> None:
    """496 pairs of which no two make a batch."""
    keep(monkeypatch, room)
    matcher = Counting()
    run(matcher, tmp_path, write_photos(tmp_path, range(20, 20 + NUM_PHOTOS)))
    assert sum(matcher.encoded.values()) <= most
    assert Encoding.most_alive <= room + 2
    assert sum(matcher.batches) == 496
    assert Encoding.alive <= room


@pytest.mark.slow
def test_pairs_of_equal_sizes_make_full_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, 40)
    matcher = Counting()
    run(matcher, tmp_path, write_photos(tmp_path, [30 + index % 2 for index in range(NUM_PHOTOS)]))
    assert sum(matcher.encoded.values()) == 32
    assert Encoding.most_alive <= 32
    assert np.mean(matcher.batches) > 6


def test_upright_photos_are_not_encoded_in_other_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(monkeypatch, 200)
    matcher = Counting()
    names = write_photos(tmp_path, [30] * 6)
    monkeypatch.setattr(
        "sfm_matchers.matchers.quarter_turns._agreement", lambda matches: Agreement(len(matches))
    )
    run(matcher, tmp_path, names, quarter_turns=True)
    assert matcher.encoded == {(30, 40): 12}  # each photo once small, once large


@pytest.mark.parametrize("error", [None, RuntimeError(CPU_MESSAGE), MemoryError()])
def test_a_batch_that_does_not_fit_is_halved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception | None
) -> None:
    matcher = Counting(2, error)
    with caplog.at_level(logging.WARNING, logger="sfm_matchers"):
        path = run(matcher, tmp_path, write_photos(tmp_path, [30] * 12))
    assert set(matcher.batches) <= {1, 2}
    assert sum(matcher.batches) == 66
    assert [record.message for record in caplog.records] == [
        "memory does not suffice for 8 pairs at once: now 4 at once",
        "memory does not suffice for 4 pairs at once: now 2 at once",
    ]
    assert path.exists()


def test_one_pair_that_does_not_fit_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughMemoryError, match="does not suffice for one pair: use fewer"):
        run(Counting(0), tmp_path, write_photos(tmp_path, [30] * 3))


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="sizes do not match"):
        run(
            Counting(0, RuntimeError("sizes do not match")),
            tmp_path,
            write_photos(tmp_path, [30, 30]),
        )
    assert not is_out_of_memory(ValueError("out of memory"))


def test_what_is_kept_makes_room_for_one_item_that_does_not_fit() -> None:
    free = [False]

    def double(items: Sequence[int]) -> list[int]:
        if not free[0]:
            raise torch.OutOfMemoryError
        return [2 * item for item in items]

    batches = FittingBatches(double, 1, lambda: free.__setitem__(0, True))
    assert list(batches.results([1, 2])) == [2, 4]


class FewAtOnce:
    """Stands in for a sparse matcher on a GPU."""

    batch_size = 8

    def match(self, features0: Arrays, features1: Arrays) -> SparseMatches:
        return self.match_batch([(features0, features1)])[0]

    def match_batch(self, pairs: Sequence[tuple[Arrays, Arrays]]) -> list[SparseMatches]:
        if len(pairs) > 3:
            raise torch.OutOfMemoryError
        return [(np.zeros(1, np.int32), pair[0]["keypoints"][0]) for pair in pairs]


def test_sparse_batches_are_halved_too() -> None:
    pairs = exhaustive_pairs([str(index) for index in range(7)])
    features = {str(index): {"keypoints": np.full((1, 1), index)} for index in range(7)}
    found = list(engine.matched_features(FewAtOnce(), pairs, features.__getitem__))
    assert [pair for pair, _ in found] == pairs
    assert [arrays["matching_scores0"][0] for _, arrays in found] == [int(a) for a, _ in pairs]


# ---------------------------------------------------------------------------------------------
# What is kept


def test_what_is_needed_last_goes_first() -> None:
    computed: list[str] = []

    def compute(key: at_hand.Key) -> int:
        computed.append(key[0])
        return 1

    kept = Kept(compute, lambda value: value, limit=3)
    pairs = [("a", "b"), ("a", "c"), ("c", "d"), ("b", "c")]
    kept.expect(pairs)
    for index, pair in enumerate(pairs):
        kept.at(index)
        for name in pair:
            kept.get((name, 0))
    assert computed == ["a", "b", "c", "d"]  # for d not b went, least recently used, but a


def test_what_is_held_stays() -> None:
    kept = Kept(lambda key: 1, lambda value: value, limit=2)
    kept.hold([("a", 0), ("a", 0), ("b", 0)])
    for name in "abc":
        kept.get((name, 0))
    assert (kept.num_bytes, kept.held_bytes) == (3, 2)
    kept.release([("a", 0), ("b", 0)])
    assert ("a", 0) in kept
    assert kept.num_bytes == 2


def test_pairs_are_ordered_for_few_photos() -> None:
    pairs = [(f"a{row:02d}", f"b{column:02d}") for row in range(16) for column in range(16)]
    assert ordered_for_room(pairs, 17) == pairs
    ordered = ordered_for_room(pairs, 9)
    assert sorted(ordered) == pairs
    assert {second for _, second in ordered[:128]} == {f"b{column:02d}" for column in range(8)}
    assert sorted(ordered_for_room(pairs, 0.5)) == pairs


def test_a_share_of_free_memory_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, expected in (
        (None, at_hand.MAX_BYTES),
        (64 << 30, at_hand.MAX_BYTES),
        (2 << 30, 1 << 29),
        (1 << 20, at_hand.MIN_BYTES),
    ):
        monkeypatch.setattr(at_hand, "available_memory", lambda free=free: free)
        assert bytes_to_keep("cpu") == expected
    monkeypatch.setattr(at_hand, "available_memory", lambda: 64 << 30)
    monkeypatch.setattr(at_hand, "available_gpu_memory", lambda device: 8 << 30)
    assert bytes_to_keep("cuda:1") == 2 << 30


def test_processes_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = memory.available_memory()
    if alone is None:
        pytest.skip("this system does not tell how much memory is free")
    monkeypatch.setattr(memory, "_processes", 1)
    memory.share_memory(4)
    shared = memory.available_memory()
    assert shared is not None
    assert shared < alone / 3
