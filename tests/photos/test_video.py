"""Photos out of videos: sharp frames, evenly spaced in motion."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from videos import write_video

from sfm_matchers import SfmOptions
from sfm_matchers.errors import InputError, MissingExtraError
from sfm_matchers.photos import video
from sfm_matchers.photos.folders import find_images
from sfm_matchers.photos.video import (
    STEP,
    FrameMeasures,
    choose_frames,
    is_video,
    measure_frames,
    write_frames,
)
from sfm_matchers.runs.frames import frames_instead_of_video, queries_instead_of_video
from sfm_matchers.runs.options import LocalizeOptions
from sfm_matchers.runs.reconstruct import check_inputs
from sfm_matchers.runs.workspace import Workspace

pytest.importorskip("av", reason="needs the extra video")

WIDTH, HEIGHT = 160, 120
INSTALL = 'pip install "sfm-matchers[video]"'


def wall(length: int = 1200) -> NDArray[np.uint8]:
    """Smooth texture (HEIGHT, length, 3) to pan along."""
    noise = np.random.default_rng(5).uniform(0, 255, (HEIGHT, length, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def pan(places: Sequence[int], blurred: Sequence[int] = ()) -> list[NDArray[np.uint8]]:
    """Pictures whose left edges are at places of the wall; some blurred by motion."""
    texture = wall()
    pictures = [np.ascontiguousarray(texture[:, x : x + WIDTH]) for x in places]
    for index in blurred:
        pictures[index] = cv2.blur(pictures[index], (9, 1))
    return pictures


# Stands, goes, runs, stands.
PLACES = [*[0] * 20, *range(0, 160, 4), *range(160, 880, 10), *[880] * 20]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    write_video(path, pan(PLACES))
    return path


@pytest.mark.slow
def test_motion_is_what_the_picture_moves(clip: Path) -> None:
    measures = measure_frames(clip)
    np.testing.assert_allclose(measures.motion * WIDTH, PLACES, atol=12)
    np.testing.assert_allclose(measures.seconds, np.arange(len(PLACES)) / 10, atol=1e-3)


@pytest.mark.slow
def test_frames_are_evenly_spaced_in_motion(clip: Path, tmp_path: Path) -> None:
    names = write_frames(clip, tmp_path, 20)
    assert list(names) == find_images(tmp_path)
    places = [PLACES[int(name[6:12])] for name in names]
    steps = np.diff(places)
    assert len(names) == 20
    assert steps.min() > 0.3 * 880 / 20
    assert steps.max() < 1.7 * 880 / 20
    with Image.open(tmp_path / next(iter(names))) as frame:
        assert frame.size == (WIDTH, HEIGHT)


@pytest.mark.slow
def test_by_default_a_frame_for_each_tenth_of_the_picture(clip: Path, tmp_path: Path) -> None:
    assert abs(len(write_frames(clip, tmp_path)) - 880 / WIDTH / STEP) <= 3


def test_sharp_frames_are_taken(tmp_path: Path) -> None:
    blurred = [index for index in range(90) if index % 4]
    write_video(tmp_path / "clip.mp4", pan(range(0, 270, 3), blurred))
    (tmp_path / "frames").mkdir()
    names = write_frames(tmp_path / "clip.mp4", tmp_path / "frames", 10)
    assert len(names) == 10
    assert {int(name[6:12]) % 4 for name in names} == {0}


def test_the_sharpest_is_in_the_middle_half_of_each_stretch() -> None:
    motion = np.linspace(0, 1, 101)
    rng = np.random.default_rng(0)
    for count in (2, 5, 10):
        chosen = choose_frames(FrameMeasures(motion, rng.random(101), motion), count)
        assert len(chosen) == count
        offsets = motion[chosen] * count % 1
        assert (np.abs(offsets - 0.5) <= 0.26).all()


def test_of_a_standing_camera_frames_are_spread_over_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_video(tmp_path / "clip.mp4", pan([7] * 40))
    (tmp_path / "frames").mkdir()
    names = write_frames(tmp_path / "clip.mp4", tmp_path / "frames", 4)
    assert "hardly moves" in caplog.text
    seconds = np.array(list(names.values()))
    assert len(seconds) == 4
    assert np.diff(seconds).min() > 0.4


def test_frames_of_a_phone_held_upright_are_upright(tmp_path: Path) -> None:
    pictures = pan(range(0, 90, 3))
    pictures[0][:20, :20] = 255
    write_video(tmp_path / "clip.mov", pictures, rotation=-90)
    (tmp_path / "frames").mkdir()
    name = next(iter(write_frames(tmp_path / "clip.mov", tmp_path / "frames", 30)))
    with Image.open(tmp_path / "frames" / name) as frame:
        assert name == "frame_000000.jpg"
        upright = np.rot90(pictures[0], -1).astype(int)
        assert np.abs(np.asarray(frame) - upright).mean() < 12


def test_of_a_damaged_video_the_frames_before_are_taken(
    clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "clip.avi"
    write_video(path, pan(range(0, 300, 3)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert 20 < len(measure_frames(path).motion) < 80
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    with pytest.raises(InputError, match=r"clip\.mp4 cannot be decoded"):
        measure_frames(path)


def test_what_is_no_video_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.MP4"
    assert is_video(path)
    with pytest.raises(InputError, match=r"clip\.MP4 is missing"):
        write_frames(path, tmp_path)
    path.write_text("no video")
    with pytest.raises(InputError, match=r"clip\.MP4 cannot be decoded"):
        write_frames(path, tmp_path)
    write_video(tmp_path / "one.mp4", pan([0]))
    with pytest.raises(InputError, match=r"one\.mp4 has 1 frame"):
        write_frames(tmp_path / "one.mp4", tmp_path)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError) as caught:
        write_frames(path, tmp_path)
    assert INSTALL in str(caught.value)


def test_a_video_in_a_folder_of_photos_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jpg", "walk/clip.MOV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == ["a.jpg"]
    clip = tmp_path / "walk" / "clip.MOV"
    assert f"left out: a video, {clip}: to use it give it in place of the folder" in caplog.text
    (tmp_path / "other.mp4").touch()
    find_images(tmp_path)
    assert "left out: 2 videos, such as " in caplog.text


# ---------------------------------------------------------------------------------------------
# In a run


def options(clip: Path, outputs: Path, frames: int | None = None) -> SfmOptions:
    return SfmOptions(clip, outputs, frames=frames)


@pytest.mark.slow
def test_frames_are_written_once(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = frames_instead_of_video(options(clip, tmp_path, 8))
    assert chosen.image_dir == Workspace(tmp_path).frames
    written = {path: path.stat().st_ino for path in chosen.image_dir.iterdir()}
    about = json.loads((chosen.image_dir / "video.json").read_text())
    assert about["video"] == str(clip)
    assert sorted(about["seconds"]) == find_images(chosen.image_dir, outputs=tmp_path)
    assert len(about["seconds"]) == 8

    with monkeypatch.context() as patch:
        patch.setattr(video, "measure_frames", pytest.fail)
        assert frames_instead_of_video(options(clip, tmp_path, 8)) == chosen
    assert {path: path.stat().st_ino for path in chosen.image_dir.iterdir()} == written

    next(iter(chosen.image_dir.glob("*.jpg"))).unlink()
    frames_instead_of_video(options(clip, tmp_path, 8))
    assert len(find_images(chosen.image_dir)) == 8
    (chosen.image_dir / "video.json").unlink()
    frames_instead_of_video(options(clip, tmp_path, 8))
    assert (chosen.image_dir / "video.json").is_file()
    frames_instead_of_video(options(clip, tmp_path, 6))
    assert len(find_images(chosen.image_dir)) == 6

    Workspace(tmp_path).clear()
    assert not chosen.image_dir.exists()


def test_a_folder_of_somebody_else_stays(clip: Path, tmp_path: Path) -> None:
    mine = tmp_path / "frames" / "mine.jpg"
    mine.parent.mkdir()
    mine.touch()
    with pytest.raises(InputError, match="give another folder as --outputs"):
        frames_instead_of_video(options(clip, tmp_path))
    Workspace(tmp_path).clear()
    assert mine.is_file()


@pytest.mark.parametrize(
    ("frames", "name", "said"),
    [(5, "photos", "--frames is for a video"), (1, "clip.mp4", "--frames 1: expected 2 or more")],
)
def test_a_number_of_frames_that_makes_no_sense_is_said(
    clip: Path, tmp_path: Path, frames: int, name: str, said: str
) -> None:
    path = clip if name == clip.name else tmp_path
    with pytest.raises(InputError, match=said):
        check_inputs(options(path, tmp_path / "out", frames))


def test_a_folder_of_photos_is_left_as_it_is(tmp_path: Path) -> None:
    chosen = options(tmp_path, tmp_path / "out")
    assert frames_instead_of_video(chosen) is chosen
    queries = LocalizeOptions(tmp_path, tmp_path, tmp_path, tmp_path / "out")
    assert queries_instead_of_video(queries) is queries


@pytest.mark.slow
def test_queries_may_be_a_video(clip: Path, tmp_path: Path) -> None:
    chosen = queries_instead_of_video(LocalizeOptions("map", "photos", clip, tmp_path))
    assert chosen.queries == Workspace(tmp_path).frames
    assert len(find_images(tmp_path / "frames")) >= 2
    with pytest.raises(InputError, match="is missing"):
        queries_instead_of_video(LocalizeOptions("map", "photos", "no.mp4", tmp_path))
