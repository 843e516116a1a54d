"""Intrinsics of photos and queries through the pipelines: given, of the map, of EXIF."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pycolmap
import pytest
from material import shared_path
from rendered_room import CAMERA, photograph_room

from pipelines import hloc
from sfm_matchers.errors import InputError
from sfm_matchers.evaluation.absolute_poses import pose_errors
from sfm_matchers.localization.poses import LocalizedQuery, Status, read_poses
from sfm_matchers.runs import localize as localize_run
from sfm_matchers.runs import queries, reconstruct
from sfm_matchers.runs.options import LocalizeOptions, SfmOptions
from sfm_matchers.runs.workspace import Workspace
from sfm_matchers.synthetic import Camera

pytestmark = pytest.mark.slow

LONGER = Camera.from_field_of_view(320, 240, 45.0)


def extent_of(model: pycolmap.Reconstruction) -> float:
    centres = np.array([image.projection_center() for image in model.images.values()])
    return float(np.linalg.norm(np.ptp(centres, axis=0)))


def percents(results: list[LocalizedQuery], truth: Path, extent: float) -> dict[str, float]:
    """Errors of the centres of localized queries, by name without folders."""
    true = {image.name: image.cam_from_world() for image in _images(truth)}
    found = {result.name: result.cam_from_world for result in results if result.cam_from_world}
    errors = pose_errors(found, true)
    names = {result.name.rpartition("/")[2] for result in results}
    return {
        name: 100 * metres / extent
        for name, (metres, _) in errors.items()
        if name.rpartition("/")[2] in names
    }


def _images(truth: Path) -> list[pycolmap.Image]:
    return list(pycolmap.Reconstruction(truth).images.values())


# ---------------------------------------------------------------------------------------------
# Small maps on which queries were localized wrongly, with many inliers


@pytest.mark.parametrize(
    ("name", "runs"),
    [("fish", [{}]), ("gopro", [{}]), ("twocam", [{}, {"camera_from_map": True}])],
)
def test_queries_of_the_maps_cameras(
    name: str, runs: list[dict[str, bool]], tmp_path: Path
) -> None:
    folder = shared_path(f"faults/{name}")
    extent = extent_of(pycolmap.Reconstruction(folder / "truth"))
    source = "camera 2 of the map (" if name == "twocam" else "camera 1 of the map"
    for options in runs:
        paths = (folder / "map", folder / "images", folder / "queries", tmp_path)
        result = localize_run.run(LocalizeOptions(*paths, **options))
        errors = percents(result.queries, folder / "truth", extent)
        assert errors
        assert max(errors.values()) < 0.2
        for query in result.queries:
            assert query.status == Status.LOCALIZED
            assert query.intrinsics.startswith(source)


# ---------------------------------------------------------------------------------------------
# Localization in a rendered map


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/: of a map, in two folders with names of their own; new/: queries of two cameras."""
    folder = tmp_path_factory.mktemp("place")
    photograph_room(folder / "map", 7)
    for name, camera, seed in (("left", CAMERA, 2), ("right", LONGER, 3)):
        photograph_room(folder / name, 2, seed, camera=camera, exif=False)
        shutil.move(folder / name / "images", folder / "new" / name)
    model = pycolmap.Reconstruction(folder / "map" / "truth")
    (folder / "sfm" / "sparse" / "0").mkdir(parents=True)
    model.write(folder / "sfm" / "sparse" / "0")
    shutil.copy(folder / "new/left/0000.jpg", folder / "map/images/unknown.jpg")
    return folder


def options_of(place: Path, outputs: Path, **options: Any) -> LocalizeOptions:
    folders = (place / "sfm", place / "map/images", place / "new", outputs)
    return LocalizeOptions(*folders, num_covis=3, num_loc=4, **options)


def test_folders_of_names_are_kept(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = localize_run.run(options_of(place, tmp_path))
    assert "1 photos of" in caplog.text
    assert "such as unknown.jpg" in caplog.text
    names = [f"new/{folder}/{index:04d}.jpg" for folder in ("left", "right") for index in (0, 1)]
    poses = read_poses(tmp_path / "poses.txt")
    assert list(poses) == names
    written = {image.name for image in pycolmap.Reconstruction(tmp_path / "model").images.values()}
    assert written.issuperset(names)
    extent = extent_of(pycolmap.Reconstruction(place / "map" / "truth"))
    for folder in ("left", "right"):
        true = {
            f"new/{folder}/{i.name}": i.cam_from_world() for i in _images(place / folder / "truth")
        }
        for metres, _ in pose_errors(poses, true).values():
            assert 100 * metres / extent < 2
    sources = [query.intrinsics for query in result.queries]
    assert sources[0] == sources[1] == "camera 1 of the map"
    assert all("focal length estimated (" in source for source in sources[2:])  # not in the map


def test_a_query_list_gives_intrinsics(place: Path, tmp_path: Path) -> None:
    left, right = (CAMERA.to_colmap(), LONGER.to_colmap())
    cameras = tmp_path / "queries.txt"
    lines = [f"left/{i:04d}.jpg PINHOLE 320 240 {params(left, ' ')}" for i in (0, 1)]
    lines += [f"new/right PINHOLE {params(right, ',', 1.3)} start"]
    cameras.write_text("\n".join(lines))
    result = localize_run.run(options_of(place, tmp_path / "out", cameras=cameras))
    assert [query.status for query in result.queries] == [Status.LOCALIZED] * 4
    assert [query.intrinsics for query in result.queries[:2]] == [
        f"{cameras}, line 1",
        f"{cameras}, line 2",
    ]
    for query in result.queries[2:]:
        assert f"{cameras}, line 3: " in query.intrinsics
        assert query.camera.mean_focal_length() == pytest.approx(LONGER.fx, rel=0.02)


def params(camera: pycolmap.Camera, separator: str, factor: float = 1.0) -> str:
    fx, fy, cx, cy = camera.params
    return separator.join(map(str, (factor * fx, factor * fy, cx, cy)))


def test_a_wrong_focal_length_of_queries_is_said(place: Path, tmp_path: Path) -> None:
    given = params(CAMERA.to_colmap(), ",", 1.5)
    result = localize_run.run(
        options_of(place, tmp_path, camera_model="PINHOLE", camera_params=given + ",")
    )
    for query in result.queries[:2]:
        assert query.status == Status.LOW_CONFIDENCE
        assert "the matches contradict the" in query.reason
    assert "low confidence: the matches contradict" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1,2,3", "takes fx, fy, cx, cy"),
        ("1000,1000,640,480", "look like those of photos of 1280 x 960"),
        ("-250,250,160,120", "above 0"),
        ("250,160,250,120", "look like fx,cx,fy,cy"),
        ("0.8,0.8,0.5,0.5", "normalised"),
    ],
)
def test_params_of_queries_are_checked_before_anything_is_matched(
    given: str, message: str, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        localize_run.run(options_of(place, tmp_path, camera_model="PINHOLE", camera_params=given))
    assert not list(tmp_path.glob("*.h5"))


# ---------------------------------------------------------------------------------------------
# Models


@pytest.fixture
def photos_of_two_sizes(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 96), dtype=np.uint8)
    for name, photo in (("a", noise), ("b", noise), ("c", noise.T)):
        cv2.imwrite(str(folder / f"{name}.png"), photo)
    return folder


def test_one_set_of_params_is_for_one_size(photos_of_two_sizes: Path, tmp_path: Path) -> None:
    message = r"these have 2: 2 of 96 x 64 \(a.png\), 1 of 64 x 96 \(c.png\)"
    given = {"camera_model": "SIMPLE_PINHOLE", "camera_params": "90,48,32"}
    with pytest.raises(InputError, match=message):
        reconstruct.run(SfmOptions(photos_of_two_sizes, tmp_path / "sfm", **given))
    assert not list((tmp_path / "sfm").glob("*.h5"))
    with pytest.raises(InputError, match=message):
        queries.make_queries(
            localize_run.start_job(
                localize_run.choose_matching(LocalizeOptions(*[tmp_path] * 4)),
                photos_of_two_sizes,
                Workspace(tmp_path / "out"),
            ),
            ["a.png", "b.png", "c.png"],
            "",
            queries.given_cameras(LocalizeOptions(*[tmp_path] * 4, **given)),
            pycolmap.Reconstruction(),
            LocalizeOptions(*[tmp_path] * 4, **given),
        )


def test_hlocs_reconstruction_checks_params_too(
    photos_of_two_sizes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for name in ("a.png", "b.png", "c.png"):
            file[f"{name}/keypoints"] = np.zeros((0, 2), np.float32)
    arguments = ["reconstruction", "--sfm_dir", "out", "--image_dir", str(photos_of_two_sizes)]
    arguments += ["--pairs", "pairs.txt", "--features", str(tmp_path / "features.h5")]
    arguments += ["--matches", "matches.h5", "--image_options", "camera_model=SIMPLE_PINHOLE"]
    assert hloc.main([*arguments, "camera_params=90,48,32"]) == 2
    assert "2 of 96 x 64" in capsys.readouterr().err


def test_cameras_of_a_file_are_fixed_or_refined(tmp_path: Path) -> None:
    """Two cameras of one size, told apart by their folders."""
    for name, camera, seed in (("left", CAMERA, 1), ("right", LONGER, 2)):
        photograph_room(tmp_path / "a", 6, seed, camera=camera, subfolder=name, exif=False)
    given = tmp_path / "cameras.txt"
    fixed, start = params(CAMERA.to_colmap(), ","), params(LONGER.to_colmap(), " ", 1.1)
    given.write_text(f"left/* PINHOLE {fixed} fixed\nright PINHOLE {start} start\n")
    result = reconstruct.run(SfmOptions(tmp_path / "a/images", tmp_path / "out", cameras=given))
    model = result.models[0]
    assert model.num_reg_images() >= 10
    cameras = {image.name.partition("/")[0]: image.camera for image in model.images.values()}
    assert cameras["left"].params.tolist() == list(CAMERA.to_colmap().params)
    assert len(model.cameras) == 2
    refined = cameras["right"].mean_focal_length()
    assert refined == pytest.approx(LONGER.fx, rel=0.02)
    assert "2 camera(s) given" in result.summary["settings"]["cameras"]
    with pytest.raises(InputError, match="the global mapper refines all cameras or none"):
        reconstruct.run(
            SfmOptions(tmp_path / "a/images", tmp_path / "out", cameras=given, mapper="global")
        )
