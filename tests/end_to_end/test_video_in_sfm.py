"""A video to a COLMAP model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rendered_room import photograph_room
from videos import write_video

from pipelines.sfm import main
from sfm_matchers import localize, reconstruct
from sfm_matchers.localization.poses import Status
from sfm_matchers.photos.images import read_image
from sfm_matchers.synthetic import Camera

pytest.importorskip("av", reason="needs the extra video")
pytestmark = pytest.mark.slow

NUM_VIEWS, NUM_FRAMES = 24, 10


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A walk through a room."""
    folder = tmp_path_factory.mktemp("clip")
    photograph_room(folder, NUM_VIEWS, camera=Camera.from_field_of_view(240, 180))
    views = [read_image(path) for path in sorted((folder / "images").glob("*.jpg"))]
    write_video(folder / "clip.mp4", views)
    return folder / "clip.mp4"


def test_a_video_becomes_a_model(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = reconstruct(clip, tmp_path, matcher="sift", frames=NUM_FRAMES, no_longer_tracks=True)
    assert result.model is not None
    names = sorted(image.name for image in result.model.images.values())
    assert len(names) >= NUM_FRAMES - 1
    assert len(result.model.cameras) == 1

    again = ["--matcher", "sift", "--no_longer_tracks"]
    command = ["--video", str(clip), "--output", str(tmp_path), f"--frames={NUM_FRAMES}", *again]
    assert main(command) == 0
    assert f"{len(names)} of {NUM_FRAMES}" in capsys.readouterr().out
    assert main(["--image_dir", str(tmp_path), "--outputs", str(tmp_path), "--frames", "3"]) == 2
    assert "--frames is for a video" in capsys.readouterr().err

    located = localize(tmp_path, tmp_path / "frames", clip, tmp_path / "new", matcher="sift")
    poses = [query for query in located.queries if query.status == Status.LOCALIZED]
    assert len(poses) == len(located.queries) >= 10
    centres = np.array([query.cam_from_world.tgt_origin_in_src() for query in poses])
    own = {i.name: i.projection_center() for i in result.model.images.values()}
    route = np.array([own[name] for name in names])
    nearest = np.linalg.norm(centres[:, None] - route[None], axis=2).min(axis=1)
    assert np.median(nearest) < 0.5 * np.linalg.norm(np.diff(route, axis=0), axis=1).max()
