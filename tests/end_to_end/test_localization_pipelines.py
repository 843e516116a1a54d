"""Aachen, InLoc and a map of one's own, on small data sets in their layouts with exact truth."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from rendered_room import CAMERA, photograph_room, rendered_room

from pipelines import aachen
from sfm_matchers.confs import CONF_DIR
from sfm_matchers.errors import InputError, MissingExtraError
from sfm_matchers.evaluation.absolute_poses import pose_errors
from sfm_matchers.evaluation.runs import evaluate_poses
from sfm_matchers.files.hdf5 import open_h5
from sfm_matchers.files.pair_lists import read_pairs, write_pairs
from sfm_matchers.localization.nvm import read_nvm
from sfm_matchers.localization.poses import Query, Status, read_poses
from sfm_matchers.localization.query_files import write_queries
from sfm_matchers.runs import benchmarks, maps
from sfm_matchers.runs import localize as localize_run
from sfm_matchers.runs.options import AachenOptions, InlocOptions, LocalizeOptions
from sfm_matchers.synthetic import Camera, make_scene, write_photos
from sfm_matchers.synthetic.benchmarks import TRUTH, write_aachen, write_inloc, write_nvm

pytestmark = pytest.mark.slow


def errors(poses: Path, truth: Path) -> dict[str, tuple[float, float]]:
    """Metres and degrees of each query of the truth."""
    return pose_errors(read_poses(poses), read_poses(truth))


@pytest.fixture(scope="module", params=["1.1", "1.0"])
def aachen_dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("aachen")
    counts = {"num_database": 8, "num_day": 2, "num_night": 1}
    write_aachen(folder, rendered_room(), version=request.param, camera=CAMERA, **counts)
    return folder, request.param


ONE_VERSION = pytest.mark.parametrize("aachen_dataset", ["1.1"], indirect=True)


@pytest.fixture(scope="module")
def inloc_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inloc")
    width_over_focal_length = 2 * np.arctan(18 / 28)
    camera = Camera.from_field_of_view(320, 240, float(np.rad2deg(width_over_focal_length)))
    scene = make_scene(4, kind="room", texture_size=384)
    write_inloc(folder, scene, num_database=6, num_queries=2, camera=camera)
    return folder


def test_aachen_day_and_night_with_sift(
    aachen_dataset: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, version = aachen_dataset
    arguments = ["--dataset", str(dataset), "--outputs", str(tmp_path), "--version", version]
    arguments += ["--num_covis", "4", "--num_loc", "4"]
    assert aachen.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "day: 2, of which 2 localized, 0 low confidence, 0 fallback, 0 failed" in printed
    submission = tmp_path / f"Aachen-v{version}_sift_vlad4.txt"
    assert str(submission) in printed
    for name, (metres, degrees) in errors(submission, dataset / TRUTH).items():
        if name.startswith("day"):
            assert metres < 0.05
            assert degrees < 0.5
    result = evaluate_poses(submission, dataset / TRUTH)
    assert "day: 100.0 / 100.0 / 100.0 % of 2 queries" in result.summary()
    submission.write_text("")
    assert (
        "day: 0.0 / 0.0 / 0.0 % of 2 queries"
        in evaluate_poses(submission, dataset / TRUTH).summary()
    )
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")}
    assert aachen.main(arguments) == 0  # a second run computes nothing
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")} == made


@ONE_VERSION
def test_aachen_bad_input_is_named_and_the_rest_done(
    aachen_dataset: tuple[Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset, version = aachen_dataset
    broken = tmp_path / "aachen"
    shutil.copytree(dataset, broken)
    images = broken / "images_upright"
    (images / "query/day/day_0000.jpg").write_bytes(b"not a photo")
    (images / "db/db_0007.jpg").unlink()
    lists = broken / "queries" / "night_time_queries_with_intrinsics.txt"
    lists.write_text(lists.read_text() + "query/night/bad.jpg PINHOLE 320\n")
    pairs = broken / "pairs.txt"
    write_pairs(pairs, [("query/day/day_0001.jpg", f"db/db_{index:04d}.jpg") for index in range(8)])
    options = AachenOptions(broken, tmp_path / "out", version=version, num_covis=4, loc_pairs=pairs)
    result = benchmarks.localize_aachen(options)
    found = {Path(query.name).stem: query.status for query in result.queries}
    assert found == {
        "day_0000": Status.FAILED,  # cannot be decoded
        "day_0001": Status.LOCALIZED,
        "night_0000": Status.FAILED,  # the list has no pairs of it
    }
    assert list(read_poses(result.files["submission"])) == ["day_0001.jpg"]
    for words in ("db_0007.jpg is missing", "day_0000.jpg", "line 2", "bad.jpg"):
        assert words in caplog.text


def test_aachen_missing_files_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert aachen.main(["--dataset", str(tmp_path), "--outputs", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    for part in ("images_upright/query", "aachen_v_1_1", "visuallocalization.net"):
        assert part in message


@ONE_VERSION
def test_matches_that_give_no_point_are_said(
    aachen_dataset: tuple[Path, str], tmp_path: Path
) -> None:
    """Photos of another place under the names of the map's."""
    dataset, version = aachen_dataset
    broken = tmp_path / "aachen"
    shutil.copytree(dataset, broken)
    for path in (broken / "images_upright" / "db").glob("*.jpg"):
        rng = np.random.default_rng(int(path.stem[-1]))
        noise = rng.integers(0, 255, (240, 320, 3), dtype=np.uint8)
        cv2.imwrite(str(path), noise)
    with pytest.raises(InputError, match="no 3D point came out"):
        benchmarks.localize_aachen(
            AachenOptions(broken, tmp_path / "out", version=version, num_covis=2)
        )


def test_inloc_with_sift(inloc_dataset: Path, tmp_path: Path) -> None:
    result = benchmarks.localize_inloc(InlocOptions(inloc_dataset, tmp_path, num_loc=4))
    assert [query.status for query in result.queries] == [Status.LOCALIZED] * 2
    for metres, degrees in errors(result.files["submission"], inloc_dataset / TRUTH).values():
        assert metres < 0.05
        assert degrees < 0.5


def test_inloc_goes_on_without_a_scan(
    inloc_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "inloc"
    shutil.copytree(inloc_dataset, broken)
    scans = sorted(broken.rglob("*.mat"))
    scans[0].unlink()
    scans[1].write_bytes(b"not a scan")
    next(broken.rglob("DUC_trans_001.txt")).write_text("nothing")
    result = benchmarks.localize_inloc(InlocOptions(broken, tmp_path / "out", num_loc=6))
    assert len(result.queries) == 2
    for words in (scans[0].name, scans[1].name, "DUC_trans_001.txt"):
        assert words in caplog.text
    message = "is not InLoc"
    with pytest.raises(InputError, match=message):
        benchmarks.localize_inloc(InlocOptions(tmp_path / "nothing", tmp_path / "out"))


def test_nvm_keeps_poses_and_tracks(tmp_path: Path) -> None:
    scene = make_scene(1, kind="room", texture_size=64)
    camera = Camera.from_field_of_view(96, 64)
    truth = write_photos(tmp_path, scene, 3, camera=camera)
    write_nvm(tmp_path / "model.nvm", truth)
    images = sorted(truth.images.values(), key=lambda image: image.name)
    lines = [Query(i.name, truth.cameras[i.camera_id]) for i in images]
    write_queries(tmp_path / "intrinsics.txt", lines)
    model = read_nvm(tmp_path / "model.nvm", tmp_path / "intrinsics.txt")
    assert model.num_points3D() == truth.num_points3D()
    poses = {image.name: image.cam_from_world().matrix() for image in model.images.values()}
    for image in images:
        np.testing.assert_allclose(poses[image.name], image.cam_from_world().matrix(), atol=1e-6)
        found = next(other for other in model.images.values() if other.name == image.name)
        assert found.num_points3D == image.num_points3D
    write_queries(tmp_path / "intrinsics.txt", lines[:2])
    with pytest.raises(InputError, match=r"lacks the image '0002.jpg'"):
        read_nvm(tmp_path / "model.nvm", tmp_path / "intrinsics.txt")
    text = (tmp_path / "model.nvm").read_text()
    (tmp_path / "cut.nvm").write_text(text[: len(text) // 2])
    write_queries(tmp_path / "intrinsics.txt", lines)
    with pytest.raises(InputError, match="cut off"):
        read_nvm(tmp_path / "cut.nvm", tmp_path / "intrinsics.txt")


@pytest.fixture(scope="module")
def own_map(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/: of the map; new/: queries; model/: known poses, no points; truth/."""
    folder = tmp_path_factory.mktemp("map")
    photograph_room(folder / "a", 7)
    photograph_room(folder / "b", 3, seed=2)
    shutil.move(folder / "a" / "images", folder / "photos")
    shutil.move(folder / "b" / "images", folder / "new")
    (folder / "new" / "broken.jpg").write_bytes(b"not a photo")
    return folder


def test_new_photos_find_their_place_in_a_map(
    own_map: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any source of their intrinsics; all take what the first run has found of the map."""
    check_that_photos_are_localized(own_map, tmp_path)
    monkeypatch.delattr(maps, "find_denied_poses")
    for options in ({"camera_from_map": True}, {"estimate_focal_length": True}):
        check_that_photos_are_localized(own_map, tmp_path, **options)


def check_that_photos_are_localized(own_map: Path, tmp_path: Path, **options: bool) -> None:
    result = localize_run.run(
        LocalizeOptions(
            own_map / "a" / "truth", own_map / "photos", own_map / "new", tmp_path, **options
        )
    )
    found = {Path(query.name).name: query for query in result.queries}
    assert found.pop("broken.jpg").status == Status.FAILED
    truth = pycolmap.Reconstruction(own_map / "b" / "truth")
    for image in truth.images.values():
        query = found[image.name]
        assert query.status == Status.LOCALIZED
        true = image.cam_from_world().inverse().translation
        metres = np.linalg.norm(query.cam_from_world.inverse().translation - true)
        assert metres < 0.1
    model = pycolmap.Reconstruction(tmp_path / "model")
    names = {image.name for image in model.images.values()}
    assert {"photos/0000.jpg", "new/0000.jpg", "new/0002.jpg"} <= names
    assert "new/broken.jpg" not in names
    page = (tmp_path / "report.html").read_text()
    assert "3 localized, 0 low confidence, 0 fallback, 1 failed" in page
    assert page.count("<figure data-image=") == 3


def test_mirrored_photos_and_another_place_are_not_localized_in_a_map_far_away(
    own_map: Path, tmp_path: Path
) -> None:
    """The map in UTM coordinates, as surveyors give it."""
    origin = np.array([5e5, 5.4e6, 300.0])
    model = pycolmap.Reconstruction(own_map / "a" / "truth")
    model.transform(pycolmap.Sim3d(1, pycolmap.Rotation3d(), origin))
    (tmp_path / "map").mkdir()
    model.write(tmp_path / "map")
    scene = make_scene(40, kind="room", texture_size=384)
    write_photos(tmp_path / "c", scene, 2, 3, camera=CAMERA)
    queries = shutil.copytree(tmp_path / "c" / "images", tmp_path / "queries" / "other")
    for path in sorted((own_map / "new").glob("0*.jpg")):
        shutil.copy(path, tmp_path / "queries" / path.name)
    for path in sorted((own_map / "photos").glob("*.jpg"))[:3]:
        cv2.imwrite(str(queries.parent / f"mirrored{path.name}"), cv2.imread(str(path))[:, ::-1])
    options = LocalizeOptions(
        tmp_path / "map", own_map / "photos", tmp_path / "queries", tmp_path / "out"
    )
    result = localize_run.run(options)
    truth = pycolmap.Reconstruction(own_map / "b" / "truth")
    centres = {image.name: image.projection_center() + origin for image in truth.images.values()}
    for query in result.queries:
        name = Path(query.name).name
        if name in centres and "other" not in query.name:
            assert query.status == Status.LOCALIZED
            centre = query.cam_from_world.inverse().translation
            assert np.linalg.norm(centre - centres[name]) < 0.1
        else:
            assert query.status in (Status.FALLBACK, Status.FAILED)
    assert len(result.queries) == 8


def test_a_map_without_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The map's keypoints are shared by its pairs; the queries' are as many as the matched points,
    off by as much as the map's keypoints beside them. Look-alikes are found by SIFT."""
    localize_queries, local_features = localize_run.localize_queries, []

    def spy(*args: object, **options: Path) -> object:
        local_features.append(options["local_features"])
        return localize_queries(*args, **options)

    monkeypatch.setattr(localize_run, "localize_queries", spy)
    photograph_room(tmp_path / "map", 4)
    photograph_room(tmp_path / "new", 1, seed=2)
    outputs, conf = tmp_path / "out", tmp_path / "jamma.yaml"
    text = (CONF_DIR / "jamma.yaml").read_text()
    text = text.replace("quarter_turns: true", "quarter_turns: false")  # all are upright
    # Processors differ in bfloat16, by as many points.
    conf.write_text(text.replace("name: jamma ", "name: jamma\n  precision: float32 "))
    options = LocalizeOptions(
        tmp_path / "map" / "truth",
        tmp_path / "map" / "images",
        tmp_path / "new" / "images",
        outputs,
        str(conf),
        num_covis=2,
        num_loc=2,
    )
    result = localize_run.run(options)
    assert local_features == [outputs / "feats-sift.h5"]
    assert result.model.num_points3D() > 40
    assert [query.status for query in result.queries] == [Status.LOCALIZED]
    of_map = matched_points(outputs, "feats-jamma.h5", "pairs-db-covis2")
    assert all(len(keypoints) < 0.8 * len(points) for keypoints, points in of_map)
    of_queries = matched_points(outputs, "feats-jamma_pairs-query-vlad2.h5", "pairs-query-vlad2")
    for keypoints, points in of_queries:
        assert len(keypoints) > 0.9 * len(points) > 0
        moved, stored = np.array(sorted(keypoints)), np.array(sorted(points))
        distances = np.linalg.norm(moved[:, None] - stored, axis=2).min(axis=1)
        is_moved = distances > 0  # not those that match no keypoint of the map
        assert is_moved.mean() > 0.05
        assert np.median(distances[is_moved]) < 3


def matched_points(
    folder: Path, features: str, pairs: str
) -> list[tuple[set[tuple[float, ...]], set[tuple[float, ...]]]]:
    """Keypoints of each photo, and its points in the correspondences."""
    found = []
    points: dict[str, set[tuple[float, ...]]] = {}
    with open_h5(folder / f"correspondences-jamma_{pairs}.h5") as file:
        for names in read_pairs(folder / f"{pairs}.txt"):
            for name, array in zip(names, file.correspondences(*names), strict=False):
                points.setdefault(name, set()).update(map(tuple, array.tolist()))
    with open_h5(folder / features) as file:
        for name in file.names():
            keypoints = set(map(tuple, file.keypoints(name).tolist()))
            found.append((keypoints, points[name]))
    return found


def test_wrong_options_are_explained(
    own_map: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {"map_images": own_map / "photos", "queries": own_map / "new", "outputs": tmp_path}
    with pytest.raises(InputError, match="not a COLMAP model"):
        localize_run.run(LocalizeOptions(map=own_map / "new", **paths))
    with pytest.raises(InputError, match="give the folder that"):
        localize_run.run(
            LocalizeOptions(
                **{**paths, "map": own_map / "a" / "truth", "map_images": own_map / "b"}
            )
        )
    with pytest.raises(InputError, match="unknown retrieval 'nearest'"):
        localize_run.run(
            LocalizeOptions(**{**paths, "map": own_map / "a" / "truth"}, retrieval="nearest")
        )
    monkeypatch.setattr("sfm_matchers.runs.retrieval.is_installed", lambda: False)
    with pytest.raises(MissingExtraError, match="or take vlad"):
        localize_run.run(
            LocalizeOptions(**{**paths, "map": own_map / "a" / "truth"}, retrieval="netvlad")
        )
    with pytest.raises(InputError, match="holds no photo"):
        localize_run.run(
            LocalizeOptions(
                **{**paths, "map": own_map / "a" / "truth", "queries": own_map / "a" / "truth"}
            )
        )
