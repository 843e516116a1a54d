"""Threads match pairs side by side, and find what one finds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matching_work import MeanColor, Work, content
from short_matchers import mambaglue_matcher, sift_like

from sfm_matchers.errors import InputError
from sfm_matchers.matchers.protocols import EncodedImage, Matches
from sfm_matchers.matching import InProcess, engine, side_by_side
from sfm_matchers.matching.side_by_side import pairs_at_once
from sfm_matchers.pairs.policies import exhaustive_pairs

NUM_PHOTOS = 7


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(side_by_side, "available_memory", lambda: 64 << 30)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    (tmp_path / "photos").mkdir()
    for index in range(NUM_PHOTOS):
        pixels = np.random.default_rng(index).integers(0, 255, (24, 32, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{index}.png"), pixels)
    names = [f"{index}.png" for index in range(NUM_PHOTOS)]
    return Work(tmp_path / "photos", tmp_path / "out" / "correspondences.h5", names)


class Meeting(MeanColor):
    """The first pair waits until another one is matched at the same time."""

    is_thread_safe = True

    def __init__(self, encodings: list[int], threads: list[int]) -> None:
        super().__init__()
        self.encodings, self.threads = encodings, threads
        self.met, self.lock, self.active = threading.Event(), threading.Lock(), 0

    def encode(self, image: np.ndarray) -> EncodedImage:
        self.encodings.append(int(image[0, 0, 0]))
        return super().encode(image)

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        with self.lock:
            self.active += 1
            if self.active == 2:
                self.met.set()
        assert self.met.wait(timeout=60)
        self.threads.append(torch.get_num_threads())
        with self.lock:
            self.active -= 1
        return super().match_encoded(image0, image1)


@pytest.mark.usefixtures("two_threads")
def test_two_threads_match_two_pairs_at_once(work: Work, tmp_path: Path) -> None:
    alone = Work(work.image_dir, tmp_path / "alone.h5", work.names)
    alone.run(InProcess())
    encodings: list[int] = []
    threads: list[int] = []
    work.run(InProcess(), Meeting, encodings=encodings, threads=threads)
    assert content(work.path) == content(alone.path)
    assert len(encodings) == NUM_PHOTOS
    assert threads == [1] * len(work.pairs)


class Refusing(MeanColor):
    is_thread_safe = True

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        raise InputError("these photos cannot be matched")


@pytest.mark.usefixtures("two_threads")
def test_an_error_of_a_thread_is_that_of_the_run(work: Work) -> None:
    with pytest.raises(InputError, match="these photos cannot be matched"):
        work.run(InProcess(), Refusing)


@pytest.mark.slow
@pytest.mark.usefixtures("two_threads")
def test_sparse_pairs_are_the_same_side_by_side() -> None:
    matcher = mambaglue_matcher("as_is")
    features = {str(seed): sift_like(40 + seed, seed) for seed in range(5)}
    pairs = exhaustive_pairs(list(features))
    torch.set_num_threads(1)
    expected = dict(engine.matched_features(matcher, pairs, features.__getitem__))
    torch.set_num_threads(2)
    with side_by_side.side_by_side(2) as run:
        found = dict(engine.matched_features(matcher, pairs, features.__getitem__, run))
    for pair, arrays in expected.items():
        assert all(np.array_equal(array, found[pair][name]) for name, array in arrays.items())


@pytest.mark.usefixtures("two_threads")
def test_there_are_as_many_pairs_as_threads_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pairs_at_once("cpu", 1) == 2
    assert pairs_at_once("cuda", 8) == pairs_at_once("mps", 8) == 1
    monkeypatch.setattr(side_by_side, "available_memory", lambda: 1 << 30)
    assert pairs_at_once("cpu", 1) == 1
    assert engine._pairs_at_once(MeanColor()) == 1  # of a matcher that does not say it is safe
