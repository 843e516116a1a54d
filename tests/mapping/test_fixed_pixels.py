"""What stands at the same pixels of all photos has no matches in the database, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfm_matchers.mapping.fixed_pixels import FixedPixels, leave_out_fixed_pixels
from sfm_matchers.synthetic.cameras import Camera, look_at, project

CAMERA = Camera.from_field_of_view(640, 480)
Keypoints = dict[int, np.ndarray]
"""Number of a point -> its pixel in one photo."""


def photos_around(angles: Sequence[float], seed: int = 0) -> list[Keypoints]:
    """Photos of 400 points from directions in degrees."""
    rng = np.random.default_rng(seed)
    points = rng.uniform([-4, -4, 0], [4, 4, 5], (400, 3))
    photos = []
    for degrees in angles:
        turn = np.radians(degrees)
        center = np.array([14 * np.sin(turn), -14 * np.cos(turn), 2.0])
        pixels, _ = project(points, CAMERA, look_at(center, rng.normal([0, 0, 2.0], 0.3)))
        pixels += rng.normal(0, 0.3, pixels.shape)
        inside = ((pixels >= 0) & (pixels < [640, 480])).all(axis=1) & (rng.random(400) < 0.8)
        photos.append({int(i): pixels[i] for i in np.flatnonzero(inside)})
    return photos


def with_bar(photos: Sequence[Keypoints], count: int = 300) -> list[Keypoints]:
    """The photos with a bar along the lower border that hides what is behind it."""
    rng = np.random.default_rng(9)
    bar = rng.uniform([0, 400], [640, 480], (count, 2))
    hidden = [{i: xy for i, xy in photo.items() if xy[1] < 400} for photo in photos]
    noisy = [bar + rng.normal(0, 0.2, bar.shape) for _ in photos]
    return [
        photo | {1000 + i: xy for i, xy in enumerate(one)}
        for photo, one in zip(hidden, noisy, strict=True)
    ]


def write(
    path: Path, photos: Sequence[Keypoints], sizes: Sequence[tuple[int, int]] = ((640, 480),)
) -> None:
    """Write a database of photos, of these sizes in turn, with the matches of all pairs."""
    numbers = [np.array(sorted(photo)) for photo in photos]
    with pycolmap.Database.open(path) as database:
        camera_ids = [
            database.write_camera(
                pycolmap.Camera.create_from_model_name(0, "SIMPLE_RADIAL", 500.0, *size)
            )
            for size in sizes
        ]
        for index, photo in enumerate(photos):
            camera_id = camera_ids[index % len(sizes)]
            image_id = database.write_image(
                pycolmap.Image(name=f"{index}.jpg", camera_id=camera_id)
            )
            pixels = np.array([photo[number] for number in numbers[index].tolist()]) + 0.5
            database.write_keypoints(image_id, pixels.astype(np.float32))
        for second in range(len(photos)):
            for first in range(second):
                _, one, two = np.intersect1d(numbers[first], numbers[second], return_indices=True)
                matches = np.column_stack([one, two]).astype(np.uint32)
                database.write_matches(first + 1, second + 1, matches)


def matched(path: Path, photos: Sequence[Keypoints]) -> dict[tuple[int, int], set[int]]:
    """Numbers of the points that match, of each pair that has any."""
    numbers = [sorted(photo) for photo in photos]
    with pycolmap.Database.open(path) as database:
        pair_ids, all_matches = database.read_all_matches()
    found = {}
    for pair_id, matches in zip(pair_ids, all_matches, strict=True):
        first, second = (i - 1 for i in pycolmap.pair_id_to_image_pair(pair_id))
        ends = [
            (numbers[first][one], numbers[second][two])
            for one, two in np.asarray(matches, int).tolist()
        ]
        assert all(one == two for one, two in ends)
        found[first, second] = {one for one, _ in ends}
    return found


def test_what_is_fixed_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    photos = with_bar(photos_around([-30, -18, -6, 6, 18, 30]))
    write(tmp_path / "database.db", photos)
    before = matched(tmp_path / "database.db", photos)
    found = leave_out_fixed_pixels(tmp_path / "database.db")
    after = matched(tmp_path / "database.db", photos)
    assert before.keys() == after.keys()
    for pair, numbers in after.items():
        moving = {number for number in before[pair] if number < 1000}
        assert numbers <= moving
        assert len(numbers) >= len(moving) - 1  # one may rest by chance
    assert found is not None
    assert found.num_photos == 6
    assert 1 / 6 <= found.area < 0.22
    assert found.num_matches == sum(len(before[pair]) - len(after[pair]) for pair in before)
    assert "same pixels of 6 photos" in found.summary()
    assert "--mask_dir" in found.summary()


def test_a_background_that_does_not_turn_with_a_turntable_is_left_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    around = rng.uniform([0, 0], [640, 480], (900, 2))
    around = around[np.abs(around - [320, 240]).max(axis=1) > 150]
    photos = [
        {i: xy for i, xy in photo.items() if np.abs(xy - [320, 240]).max() < 140}
        | {1000 + i: xy + rng.normal(0, 0.2, 2) for i, xy in enumerate(around)}
        for photo in photos_around([0, 15, 30, 45, 60])
    ]
    write(tmp_path / "database.db", photos)
    found = leave_out_fixed_pixels(tmp_path / "database.db")
    assert found is not None
    assert 0.6 < found.area < 0.85
    assert all(
        max(numbers) < 1000 for numbers in matched(tmp_path / "database.db", photos).values()
    )


def test_photos_without_anything_fixed_are_left_as_they_are(tmp_path: Path) -> None:
    photos = photos_around([-30, -18, -6, 6, 18, 30])
    write(tmp_path / "database.db", photos)
    before = matched(tmp_path / "database.db", photos)
    assert leave_out_fixed_pixels(tmp_path / "database.db") is None
    assert matched(tmp_path / "database.db", photos) == before


def test_photos_taken_without_a_step_between_them_keep_their_matches(tmp_path: Path) -> None:
    """Somebody walks through three of eight photos that were taken from one place."""
    photos = photos_around([-30, -18, -6, 6, 18, 30])
    rng = np.random.default_rng(1)
    person = rng.uniform([100, 150], [180, 400], (60, 2))
    for step in range(3):
        still = {i: xy + rng.normal(0, 0.2, 2) for i, xy in photos[0].items()}
        photos.append(still | {2000 + i: xy + [60 * step, 0] for i, xy in enumerate(person)})
    write(tmp_path / "database.db", photos)
    before = matched(tmp_path / "database.db", photos)
    assert leave_out_fixed_pixels(tmp_path / "database.db") is None
    assert matched(tmp_path / "database.db", photos) == before


def test_photos_of_one_place_among_those_with_a_bar_keep_their_other_matches(
    tmp_path: Path,
) -> None:
    photos = photos_around([-30, -18, -6, 6, 18, 30])
    rng = np.random.default_rng(2)
    photos.append({i: xy + rng.normal(0, 0.2, 2) for i, xy in photos[0].items()})
    photos = with_bar(photos)
    write(tmp_path / "database.db", photos)
    assert leave_out_fixed_pixels(tmp_path / "database.db") is not None
    kept = matched(tmp_path / "database.db", photos)[0, 6]
    above = {i for i in photos[0].keys() & photos[6].keys() if i < 1000}
    assert len(kept) > 0.9 * len(above)
    assert kept <= above


@pytest.mark.parametrize(("farthest", "step"), [(200, 0.3), (600, 0.3), (600, 1.0)])
def test_what_is_far_away_ahead_of_a_camera_is_not_fixed(
    farthest: float, step: float, tmp_path: Path
) -> None:
    """Frames of a camera that goes straight on, metres: much of the picture hardly moves."""
    rng = np.random.default_rng(0)
    depths = np.exp(rng.uniform(np.log(5), np.log(farthest), 1500))
    across = rng.uniform([-0.6, -0.4], [0.6, 0.4], (1500, 2)) * depths[:, None]
    photos = []
    for index in range(8):
        left = depths - step * index
        pixels = 500 * across / left[:, None] + [320, 240] + rng.normal(0, 0.25, (1500, 2))
        seen = ((pixels >= 0) & (pixels < [640, 480])).all(axis=1) & (rng.random(1500) < 0.7)
        photos.append({int(i): pixels[i] for i in np.flatnonzero(seen & (left > 1))})
    write(tmp_path / "database.db", photos)
    assert leave_out_fixed_pixels(tmp_path / "database.db") is None


def test_photos_of_two_sizes_are_looked_at_apart(tmp_path: Path) -> None:
    photos = with_bar(photos_around([-30, -24, -18, -12, -6, 0, 6, 12]))
    write(tmp_path / "database.db", photos, [(640, 480), (480, 480)])
    before = matched(tmp_path / "database.db", photos)
    found = leave_out_fixed_pixels(tmp_path / "database.db")
    after = matched(tmp_path / "database.db", photos)
    assert found is not None
    assert found.num_photos == 8
    for first, second in before:
        has_bar = any(number >= 1000 for number in after[first, second])
        assert has_bar == ((second - first) % 2 == 1)


def test_pairs_of_which_nothing_is_left_go(tmp_path: Path) -> None:
    photos = with_bar(photos_around([-12, 0, 12, 170]))
    photos[3] = {i: xy for i, xy in photos[3].items() if i >= 1000}
    write(tmp_path / "database.db", photos)
    found = leave_out_fixed_pixels(tmp_path / "database.db")
    assert found is not None
    assert found.num_photos == 3
    assert all(3 not in pair for pair in matched(tmp_path / "database.db", photos))


def test_a_database_without_matches_has_nothing_fixed(tmp_path: Path) -> None:
    write(tmp_path / "database.db", [])
    assert leave_out_fixed_pixels(tmp_path / "database.db") is None


def test_what_was_found_can_be_noted() -> None:
    found = FixedPixels(12, 0.18, 48_676)
    assert found.summary().startswith("48,676 matches left out, as they are at the same pixels of")
