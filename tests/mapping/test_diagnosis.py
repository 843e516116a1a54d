"""The reason that is given for a missing or incomplete model is the real one."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from rendered_room import CAMERA, photograph_room

from sfm_matchers.confs import CONF_DIR
from sfm_matchers.localization.poses import LocalizedQuery, Status
from sfm_matchers.mapping.diagnosis import MatchGraph, explain, fault_of_photo, is_rotation
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.queries import name_faults
from sfm_matchers.runs.reconstruct import run
from sfm_matchers.runs.results import SfmResult
from sfm_matchers.synthetic import camera_path, make_scene, render
from tests.support.point_models import add_image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    return photograph_room(folder, 6) / "images"


def write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image)


def spoilt(photo: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "dark": (photo * 0.06).astype(np.uint8),
        "blurred": cv2.GaussianBlur(photo, None, 12),
        "blank": np.full_like(photo, 120),
        "overexposed": (230 + photo * 0.09).astype(np.uint8),
        "tiny": cv2.resize(photo, (160, 120), interpolation=cv2.INTER_AREA),
    }


@pytest.mark.parametrize("fault", ["dark", "blurred", "blank", "overexposed", "tiny"])
def test_what_is_wrong_with_a_photo(photos: Path, tmp_path: Path, fault: str) -> None:
    good = cv2.imread(str(photos / "0000.jpg"))
    write(tmp_path / "a.png", spoilt(good)[fault])
    assert fault_of_photo(tmp_path, "a.png") == fault
    assert fault_of_photo(photos, "0000.jpg") == ""


@pytest.mark.parametrize("size", [(1, 4320), (4320, 1), (1, 1)])
def test_photos_of_any_shape_are_looked_at(tmp_path: Path, size: tuple[int, int]) -> None:
    levels = np.random.default_rng(0).integers(0, 255, size)
    write(tmp_path / "a.png", levels.astype(np.uint8))
    assert fault_of_photo(tmp_path, "a.png") in ("", "blank", "blurred", "tiny")


def test_masked_photos_are_said_to_be(photos: Path, tmp_path: Path) -> None:
    write(tmp_path / "mask.png", np.zeros((240, 320), np.uint8))
    assert "masked" in fault_of_photo(photos, "0000.jpg", tmp_path / "mask.png")
    clear = np.dstack([cv2.imread(str(photos / "0000.jpg")), np.zeros((240, 320), np.uint8)])
    write(tmp_path / "a.png", clear)
    assert fault_of_photo(tmp_path, "a.png") == "transparent all over"


def reason_of(result: SfmResult) -> str:
    reason = result.summary["reason"]
    assert reason in result.report.read_text(encoding="utf-8").replace("&#x27;", "'")
    return reason


def test_photos_without_keypoints_are_named(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    shutil.copytree(photos, images)
    good = cv2.imread(str(photos / "0000.jpg"))
    write(images / "x.png", spoilt(good)["dark"] // 8)
    write(images / "y.png", spoilt(good)["blank"])
    result = run(SfmOptions(images, tmp_path / "out"))
    assert "2 photo(s) have no keypoints: x.png (dark), y.png (blank)" in caplog.text
    assert "match no other photo" not in caplog.text
    assert reason_of(result).startswith("2 of 8 photos are not in the model")
    assert "no keypoints: the photo is dark" in result.report.read_text(encoding="utf-8")


def test_no_matches_before_verification(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png"):
        write(tmp_path / "images" / name, rng.integers(0, 255, (120, 160, 3)).astype(np.uint8))
    reason = reason_of(run(SfmOptions(tmp_path / "images", tmp_path / "out")))
    assert "before verification, 15 are needed" in reason
    assert "keypoints" not in reason


def test_matches_that_no_geometry_explains(photos: Path, tmp_path: Path) -> None:
    """The second photo is the first, torn into strips: of few matches one geometry is the same."""
    photo = cv2.imread(str(photos / "0000.jpg"))
    rows = [photo[row : row + 24] for row in range(0, 240, 24)]
    order = np.random.default_rng(1).permutation(10)
    shifts = np.random.default_rng(2).integers(20, 300, 10)
    torn = np.concatenate(
        [np.roll(rows[i], shift, axis=1) for i, shift in zip(order, shifts, strict=True)]
    )
    write(tmp_path / "images" / "a.png", photo)
    write(tmp_path / "images" / "b.png", torn)
    conf = tmp_path / "strict.yaml"
    conf.write_text((CONF_DIR / "sift.yaml").read_text() + "\nmin_inlier_ratio: 0.9\n")
    reason = reason_of(run(SfmOptions(tmp_path / "images", tmp_path / "out", str(conf))))
    assert "a.png and b.png, has" in reason
    assert "no two-view geometry explains enough of them" in reason


def run_pinhole(folder: Path, params: str) -> SfmResult:
    """Reconstruct what lies in a folder's ``images``."""
    return run(
        SfmOptions(
            folder / "images",
            folder / "out",
            "sift",
            camera_model="SIMPLE_PINHOLE",
            camera_params=params,
        )
    )


@pytest.mark.parametrize("exif", [True, False])
def test_a_camera_that_only_turns(tmp_path: Path, exif: bool) -> None:
    scene = make_scene(3, kind="room", texture_size=384)
    first = np.asarray(camera_path(scene, 6, 1)[2])
    for index in range(4):
        turn = cv2.Rodrigues(np.array([0.02, 0.12, 0.01]) * index)[0]
        image = render(scene, CAMERA, turn @ first).image
        write(tmp_path / "images" / f"{index}.png", image[..., ::-1])
    result = run_pinhole(tmp_path, f"{CAMERA.fx},160,120" if exif else "")
    assert not result.models
    assert "the camera only turned" in reason_of(result)
    assert result.verdict.text.startswith("no model of 4 photos: the camera only turned; walk")


def test_two_photos_from_nearly_one_place(tmp_path: Path) -> None:
    scene = make_scene(3, kind="room", texture_size=384)
    first = np.asarray(camera_path(scene, 6, 1)[2])
    for index in range(2):
        pose = first.copy()
        pose[0, 3] += 0.6 * index
        write(tmp_path / "images" / f"{index}.png", render(scene, CAMERA, pose).image[..., ::-1])
    result = run_pinhole(tmp_path, f"{CAMERA.fx},160,120")
    assert not result.models
    reason = reason_of(result)
    assert "too little parallax, at most " in reason
    assert reason.endswith("walk further between photos")
    assert result.verdict.text == (
        "no model of 2 photos: too little parallax; walk further between photos"
    )


def test_one_flat_surface_is_not_taken_for_a_turn() -> None:
    camera = CAMERA.to_colmap()
    calibration = camera.calibration_matrix()
    turn = cv2.Rodrigues(np.array([0.05, 0.2, -0.03]))[0]
    normal, step = np.array([0.1, 0, 1.0]), np.array([0.3, 0.05, 0])
    inverse = np.linalg.inv(calibration)
    assert is_rotation(calibration @ turn @ inverse, [camera, camera])
    plane = calibration @ (turn + np.outer(step, normal) / 2) @ inverse
    assert not is_rotation(plane, [camera, camera])


def graph_of(edges: dict[tuple[int, int], tuple[int, int]], count: int) -> MatchGraph:
    return MatchGraph(
        names=[f"{row}.jpg" for row in range(count)],
        num_keypoints=np.full(count, 1000),
        edges=np.array(list(edges)),
        matches=np.array([raw for raw, _ in edges.values()]),
        verified=np.array([verified for _, verified in edges.values()]),
        database_path=Path("none.db"),
        image_ids={},
    )


def model_of(names: list[str]) -> pycolmap.Reconstruction:
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(CAMERA.to_colmap())
    for index, name in enumerate(names, start=1):
        add_image(model, index, name, pycolmap.Rigid3d())
    return model


def test_the_weak_link_is_named() -> None:
    graph = graph_of({(0, 1): (300, 200), (1, 2): (60, 22), (2, 3): (500, 400)}, 4)
    reason = explain(graph, [model_of(["0.jpg", "1.jpg"])]).reason
    assert reason.startswith("2 of 4 photos are not in the model: the strongest link is 1.jpg and")
    assert "2.jpg, at most 22 verified matches with a registered photo; a pose needs 30" in reason
    assert explain(graph, [model_of([f"{row}.jpg" for row in range(4)])]).reason == ""


def test_groups_say_what_lies_between_them() -> None:
    edges = {(0, 1): (300, 200), (2, 3): (500, 400)}
    (line,) = explain(graph_of(edges, 4), [model_of(["2.jpg", "3.jpg"])]).details
    assert "2 groups without verified matches between them" in line
    assert "no pair of photos from both was matched" in line
    graph = graph_of({**edges, (1, 2): (14, 0)}, 4)
    (line,) = explain(graph, [model_of(["2.jpg", "3.jpg"])]).details
    assert "the best pair has 14 matches, none verified" in line


def test_queries_without_a_pose_are_told_what_is_wrong_with_the_photo(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "dark.png"), np.full((240, 320, 3), 3, np.uint8))
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "fine.png"), noise)
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 300.0, 320, 240)
    for status, spoken in (
        (Status.FAILED, "0 matches; the photo is dark"),
        (Status.FALLBACK, "0 matches; the photo is dark"),
        (Status.LOW_CONFIDENCE, "0 matches"),
    ):
        results = [
            LocalizedQuery(name, status, camera, reason="0 matches")
            for name in ("dark.png", "fine.png")
        ]
        name_faults(results, tmp_path)
        assert [result.reason for result in results] == [spoken, "0 matches"]
