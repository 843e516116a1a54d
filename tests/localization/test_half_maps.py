"""The benchmark of new photos in half a map, on a rendered place whose truth is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.half_maps import main, of_scene_info
from sfm_matchers.mapping.models import write_model
from sfm_matchers.synthetic import Camera, make_scene, write_photos


@pytest.mark.slow
def test_half_of_a_place_localizes_the_other_half(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = make_scene(3, kind="room", texture_size=384)
    camera = Camera.from_field_of_view(320, 240, 65)
    truth = write_photos(tmp_path, scene, 12, 1, camera=camera)
    write_model(truth, tmp_path / "colmap_gt")
    main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"6 photos of {tmp_path.name} are the map"
    matcher, localized, *others, median, _ = lines[-1].strip("| ").split(" | ")
    assert (matcher, localized, others) == ("sift", "6", ["0", "0", "0"])
    percent, degrees = (float(part.split()[0]) for part in median.split(", "))
    assert percent < 0.2
    assert degrees < 0.1


def test_a_scene_info_file_is_read_as_a_model(tmp_path: Path) -> None:
    scene = make_scene(3, kind="room", texture_size=64)
    camera = Camera.from_field_of_view(64, 48, 65)
    truth = write_photos(tmp_path, scene, 3, 1, camera=camera)
    images = sorted(truth.images.values(), key=lambda image: image.name)
    matrix = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
    poses = [np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]]) for image in images]
    np.savez(
        tmp_path / "scene.npz",
        image_paths=np.array([f"place/images/{image.name}" for image in images], object),
        depth_paths=np.array([None] * 3, object),
        intrinsics=np.array([matrix] * 3, object),
        poses=np.array([*poses, None], object)[:3],
        pair_infos=np.array([((0, 1), 0.5, None)], object),
    )
    model = of_scene_info(tmp_path / "scene.npz", tmp_path / "images")
    assert {image.name for image in model.images.values()} == {image.name for image in images}
    for image in model.images.values():
        (true,) = [one for one in images if one.name == image.name]
        pose = true.cam_from_world().matrix()
        np.testing.assert_allclose(image.cam_from_world().matrix(), pose, atol=1e-9)
        np.testing.assert_allclose(
            model.cameras[image.camera_id].calibration_matrix(), true.camera.calibration_matrix()
        )
