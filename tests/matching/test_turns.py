"""How photos lie, decided once for all their pairs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matching_work import content
from material import photo_fingerprints

from sfm_matchers.confs import DetectorFreeConf, DetectorFreePreprocessing
from sfm_matchers.files.notes import read_memory, write_memory
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.matchers.protocols import EncodedImage, Matches
from sfm_matchers.matchers.quarter_turns import Agreement, Look
from sfm_matchers.matchers.registry import load_detector_free_matcher
from sfm_matchers.matching import Executor, Processes, match_images, turns
from sfm_matchers.matching.turns import LookAt, Turns, decide, looked_at
from sfm_matchers.pairs.policies import exhaustive_pairs
from sfm_matchers.photos.resizing import turned
from sfm_matchers.synthetic import Camera, camera_path, make_scene, render


def look(quarters: int, inliers: int = 80, lean: float = 0.0, rest: int = 5) -> Look:
    """A look at two photos that agree best in one position."""
    positions = [Agreement(rest)] * 4
    positions[quarters % 4] = Agreement(inliers, lean)
    return Look(tuple(positions))


def names(count: int) -> list[str]:
    return [f"{index}.png" for index in range(count)]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12), st.randoms(use_true_random=False))
def test_all_pairs_of_a_group_get_the_true_turns_in_any_order(
    quarters: list[int], chance: random.Random
) -> None:
    photos = names(len(quarters))
    lies = dict(zip(photos, quarters, strict=True))
    looks = {pair: look(lies[pair[1]] - lies[pair[0]]) for pair in itertools.pairwise(photos)}
    found = decide(photos, looks)
    for pair in exhaustive_pairs(photos):
        first, second, is_known = Turns(found, looks).of(pair)
        assert is_known
        assert (second - first - lies[pair[1]] + lies[pair[0]]) % 4 == 0
    shuffled = chance.sample(sorted(looks.items()), len(looks))
    assert decide(chance.sample(photos, len(photos)), dict(shuffled)) == found


def test_most_photos_stay_as_they_are() -> None:
    photos = names(4)
    looks = {(photos[0], photos[index]): look(1) for index in (1, 2, 3)}
    found = decide(photos, looks)
    assert [found[name].quarters for name in photos] == [3, 0, 0, 0]


def test_the_surest_join_first_and_who_contradicts_is_looked_at_again() -> None:
    photos = names(4)
    looks = {pair: look(0, 90) for pair in itertools.pairwise(photos)}
    looks[photos[0], photos[2]] = look(1, 70)
    known = Turns(decide(photos, looks), looks)
    assert known.of((photos[1], photos[3])) == (0, 0, True)
    assert known.of((photos[0], photos[3])) == (0, 0, False)
    assert known.of((photos[0], photos[2])) == (0, 1, True)  # as this pair itself says


def test_photos_that_lean_ever_more_are_looked_at_where_they_are_far_apart() -> None:
    photos = names(5)
    looks = {pair: look(0, 90, lean=20) for pair in itertools.pairwise(photos)}
    known = Turns(decide(photos, looks), looks)
    assert known.of((photos[0], photos[2])) == (0, 0, True)
    assert known.of((photos[0], photos[3])) == (0, 0, False)


@pytest.mark.parametrize("doubtful", [look(1, 60), look(1, 90, rest=60), look(0, 5)])
def test_who_is_in_doubt_has_no_vote(doubtful: Look) -> None:
    photos = names(2)
    found = decide(photos, {(photos[0], photos[1]): doubtful})
    assert {turn.group for turn in found.values()} == set(photos)


def test_between_groups_a_turn_must_win_clearly_over_what_the_groups_say() -> None:
    photos = names(4)
    looks = {(photos[0], photos[1]): look(0), (photos[2], photos[3]): look(0)}
    for doubtful, expected in ((look(3, 12), 3), (look(3, 12, rest=9), 0)):
        looks[photos[1], photos[2]] = doubtful
        known = Turns(decide(photos, looks), looks)
        assert known.of((photos[1], photos[2])) == (0, expected, True)
        assert known.of((photos[0], photos[3])) == (0, 0, False)


def looking(agree: dict[Pair, Look], asked: list[Pair]) -> LookAt:
    def look_at(pairs: Sequence[Pair]):
        for pair in pairs:
            asked.append(pair)
            yield pair, agree.get(pair, look(0, 5))

    return look_at


class Opened:
    def __init__(self, look_at: LookAt) -> None:
        self.look_at = look_at

    def __enter__(self) -> LookAt:
        return self.look_at

    def __exit__(self, *error: object) -> None:
        pass


def looks_asked_for(
    photos: list[str], agree: dict[Pair, Look], path: Path
) -> tuple[Turns, list[Pair]]:
    pairs, asked = exhaustive_pairs(photos), []
    sources = {pair: " ".join(pair) for pair in pairs}
    return looked_at(pairs, sources, path, lambda: Opened(looking(agree, asked))), asked


def test_few_pairs_are_looked_at_and_one_that_fits_nowhere_a_few_times_more(
    tmp_path: Path,
) -> None:
    photos = names(30)
    agree = {pair: look(0, 80) for pair in exhaustive_pairs(photos)}
    known, asked = looks_asked_for(photos, agree, tmp_path / "a.json")
    assert len(asked) == len(set(asked)) < 2.2 * len(photos)
    assert all(known.of(pair)[2] for pair in agree)

    lonely = {pair: seen for pair, seen in agree.items() if photos[7] not in pair}
    known, more = looks_asked_for(photos, lonely, tmp_path / "b.json")
    assert len(more) <= len(asked) + 2 * turns.MORE_LOOKS * turns.ROUNDS
    assert not known.of((photos[7], photos[29]))[2]
    assert known.of((photos[6], photos[29]))[2]


def test_looks_are_kept_and_damaged_ones_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos, path = names(12), tmp_path / "looks.json"
    agree = {pair: look(1, 80) for pair in exhaustive_pairs(photos) if "3.png" in pair}
    known, asked = looks_asked_for(photos, agree, path)
    again, nothing = looks_asked_for(photos, agree, path)
    assert again == known
    assert not nothing
    text, stored = path.read_text(), read_memory(path)
    kept = dict(list(stored.items())[: len(stored) // 2])

    def check_looks_again(missing: int) -> None:
        again, looked = looks_asked_for(photos, agree, path)
        assert again == known
        assert len(looked) == missing
        assert read_memory(path) == stored

    write_memory(path, kept)
    check_looks_again(len(stored) - len(kept))
    for damaged in ("{", text[: len(text) // 2], text.replace("80", "88", 1)):
        path.write_text(damaged)
        caplog.clear()
        check_looks_again(len(asked))
        (line,) = caplog.messages
        assert str(path) in line


@dataclass
class Marked:
    """Knows photos whose red corner is the same: a grid of points agrees, else nothing does."""

    resize_max: int = 10_000

    def encode(self, image: np.ndarray) -> EncodedImage:
        corners = image[:: image.shape[0] - 1, :: image.shape[1] - 1, 0].reshape(4)
        alien = bool(image[..., 2].max() > 128)  # its blue
        return EncodedImage((int(corners.argmax()), alien), (1.0, 1.0), 8, image.shape[1::-1])

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        if self.resize_max != Marked.resize_max:
            looks_done.append(1)
        grid = np.stack(np.meshgrid(np.arange(10), np.arange(8)), -1).reshape(-1, 2) * 3.0
        agrees = image0.features == image1.features
        chosen = grid.astype(np.float32) if agrees else np.zeros((0, 2), np.float32)
        return Matches(chosen, chosen, np.ones(len(chosen), np.float32))


looks_done: list[int] = []
LIES = (0, 1, 0, 2, 3, 0, 1, 0)
ALIEN = 5  # shows something else


def a_folder(folder: Path) -> list[str]:
    for index, quarters in enumerate(LIES):
        image = np.zeros((30, 40, 3), np.uint8)
        image[0, 0] = (255 * (index == ALIEN), index, 255)  # BGR
        cv2.imwrite(str(folder / f"{index}.png"), turned(image, -quarters))
    return names(len(LIES))


def match_all(
    folder: Path, path: Path, pairs: Sequence[Pair], executor: Executor | None = None
) -> list[Pair]:
    conf = DetectorFreeConf(
        "m", "matches-m", {}, 1, 1, DetectorFreePreprocessing(quarter_turns=True)
    )
    wanted = photo_fingerprints(folder, {name for pair in pairs for name in pair})
    return match_images(conf, partial(Marked), pairs, folder, wanted, path, executor=executor)


def test_mixed_photos_are_matched_in_their_positions_in_any_order_and_after_a_kill(
    tmp_path: Path,
) -> None:
    photos, path = a_folder(tmp_path), tmp_path / "out" / "a.h5"
    pairs = exhaustive_pairs(photos)
    looks_done.clear()
    assert len(match_all(tmp_path, path, pairs)) == len(pairs)
    found, looks = content(path), len(looks_done)
    for name0, name1 in pairs:
        count = len(found[f"{name0}/{name1}"][1]["scores"])
        assert count == (0 if f"{ALIEN}.png" in (name0, name1) else 80)
    looks_done.clear()
    assert match_all(tmp_path, path, pairs) == []
    assert not looks_done

    other = tmp_path / "out" / "b.h5"
    shuffled = random.Random(0).sample(pairs, len(pairs))
    match_all(tmp_path, other, shuffled)
    assert content(other) == found
    assert len(looks_done) == looks

    killed = tmp_path / "out" / "c.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "SAVED_EACH", 2)
        patch.setattr(Marked, "match_encoded", interrupted_after(9, Marked.match_encoded))
        with pytest.raises(KeyboardInterrupt):
            match_all(tmp_path, killed, pairs)
    assert len(read_memory(tmp_path / "out" / "c.h5.turns.json")) > 1
    assert len(match_all(tmp_path, killed, pairs)) == len(pairs)
    assert content(killed) == found


def interrupted_after(calls: int, method):
    left = [calls]

    def interrupted(*arguments: object) -> Matches:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return method(*arguments)

    return interrupted


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path) -> None:
    pairs = exhaustive_pairs(a_folder(tmp_path))
    match_all(tmp_path, tmp_path / "a.h5", pairs)
    match_all(tmp_path, tmp_path / "b.h5", pairs, Processes(2))
    assert content(tmp_path / "a.h5") == content(tmp_path / "b.h5")


def test_a_new_photo_that_changes_how_others_lie_has_them_matched_again(tmp_path: Path) -> None:
    photos, path = a_folder(tmp_path), tmp_path / "out" / "a.h5"
    match_all(tmp_path, path, exhaustive_pairs(photos[:2]))  # both as they are, but for one
    match_all(tmp_path, path, exhaustive_pairs(photos))
    fresh = tmp_path / "out" / "b.h5"
    match_all(tmp_path, fresh, exhaustive_pairs(photos))
    assert content(path) == content(fresh)


SHIFTS = ((0, 0), (24, 16), (10, 30))
TURNED = (0, 1, 3)  # against each other by one, two and three quarters


@pytest.mark.slow
def test_the_bundled_weights_match_rendered_photos_that_lie_differently(tmp_path: Path) -> None:
    """Views of one place turned by all differences, and a photo of another place."""
    scene = make_scene(1, kind="room", texture_size=256)
    camera = Camera.from_field_of_view(352, 272)
    large = render(scene, camera, camera_path(scene, count=40)[0]).image
    views = [large[y : y + 240, x : x + 320] for x, y in SHIFTS]
    views.append(np.random.default_rng(0).integers(0, 255, (240, 320, 3)).astype(np.uint8))
    for index, (view, quarters) in enumerate(zip(views, (*TURNED, 1), strict=True)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), turned(view, -quarters)[..., ::-1])
    photos, path = names(len(views)), tmp_path / "out" / "a.h5"
    conf = DetectorFreeConf(
        "jamma", "matches-jamma", {"name": "jamma"}, 1, 1, DetectorFreePreprocessing(320, True)
    )
    load = partial(load_detector_free_matcher, conf, "bundled", "cpu")
    wanted = photo_fingerprints(tmp_path, photos)
    match_images(conf, load, exhaustive_pairs(photos), tmp_path, wanted, path)
    with h5py.File(path) as file:
        for first, second in itertools.combinations(range(len(SHIFTS)), 2):
            group = file[f"{first}.png"][f"{second}.png"]
            points = []
            for index, key in ((first, "keypoints0"), (second, "keypoints1")):
                # From the photo as stored to the upright view.
                size = (320, 240) if TURNED[index] % 2 == 0 else (240, 320)
                points.append(turned_points(group[key][()], TURNED[index], size) + SHIFTS[index])
            right = np.abs(points[0] - points[1]).max(1) < 3
            assert right.sum() > 100
            assert right.mean() > 0.8


def turned_points(points: np.ndarray, quarters: int, size: tuple[int, int]) -> np.ndarray:
    """Where pixels of an image of (width, height) lie after `turned`."""
    for _ in range(quarters % 4):
        points = np.stack([points[:, 1], size[0] - 1 - points[:, 0]], 1)
        size = size[::-1]
    return points
