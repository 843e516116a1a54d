"""A map in one folder, and photos localized in it, beside what `pipelines.localize` finds."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image
from rendered_room import photograph_room

import sfm_matchers
from pipelines import localize, map
from sfm_matchers.errors import InputError
from sfm_matchers.localization import map_folder
from sfm_matchers.localization.localizer import Localizer
from sfm_matchers.localization.poses import LocalizedQuery, Status
from sfm_matchers.pairs.sequences import with_neighbours
from sfm_matchers.photos.images import read_image
from sfm_matchers.runs import localize as localize_run
from sfm_matchers.runs.map_build import build
from sfm_matchers.runs.options import LocalizeOptions, MapOptions

pytestmark = pytest.mark.slow


EXIF_ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """photos/, truth/: of the map; new/, new_truth/: queries; ready/: the map, built with sift."""
    folder = tmp_path_factory.mktemp("place")
    photograph_room(folder / "a", 6)
    photograph_room(folder / "b", 3, seed=2)
    for old, new in (("a", ""), ("b", "new_")):
        shutil.move(folder / old / "truth", folder / f"{new}truth")
        shutil.move(folder / old / "images", folder / (new.rstrip("_") or "photos"))
    options = ["--images", str(folder / "photos"), "--matcher", "sift"]
    options = [str(folder / "truth"), *options, "--output", str(folder / "ready")]
    assert map.main(["build", *options]) == 0
    return folder


@pytest.fixture(scope="module")
def localizer(place: Path) -> Localizer:
    return Localizer(place / "ready", enough_inliers=None)


def assert_same(found: LocalizedQuery, expected: LocalizedQuery) -> None:
    ours, theirs = found.to_json(), expected.to_json()
    prefix = expected.database_names[0].partition("/")[0] + "/"
    theirs["database_names"] = [name.removeprefix(prefix) for name in theirs["database_names"]]
    theirs["name"] = theirs["name"].rpartition("/")[2]
    assert ours == theirs


def test_estimates_are_those_of_the_pipeline(
    place: Path, localizer: Localizer, tmp_path: Path
) -> None:
    options = LocalizeOptions(place / "truth", place / "photos", place / "new", tmp_path)
    expected = localize_run.run(options).queries
    assert [query.status for query in expected] == [Status.LOCALIZED] * 3
    paths = sorted((place / "new").glob("*.jpg"))
    for found, query in zip(localizer.localize_all(paths), expected, strict=True):
        assert_same(found, query)
    # One by one, by several threads.
    numbers = f"{len(localizer.model.images)} photos, {len(localizer.model.points3D):,} points"
    assert repr(localizer) == f"Localizer('{place / 'ready'}', {numbers}, {localizer.conf.name})"
    with ThreadPoolExecutor(4) as threads:
        for found, query in zip(threads.map(localizer.localize, paths), expected, strict=True):
            assert_same(found, query)


def test_why_intrinsics_are_estimated_is_said_once(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However many photos of the map a query is matched with, one after the other."""
    photo = read_image(sorted((place / "new").glob("*.jpg"))[0])
    height, width = photo.shape[:2]
    middle = photo[height // 6 : -(height // 6), width // 6 : -(width // 6)]
    with Localizer(place / "ready", enough_inliers=10**6) as all_in_turn:
        found = all_in_turn.localize(cv2.resize(middle, (width, height)))
    assert found.contradiction
    assert len([line for line in caplog.messages if "they are estimated" in line]) == 1


def test_a_copied_map_needs_no_photos(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(place / "ready", tmp_path / "elsewhere")
    assert not list((place / "ready").rglob("*.jpg"))
    options = ["--map", str(tmp_path / "elsewhere"), "--queries", str(place / "new")]
    assert localize.main([*options, "--outputs", str(tmp_path / "out"), "--sequence"]) == 0
    truth = pycolmap.Reconstruction(place / "new_truth")
    found = pycolmap.Reconstruction(tmp_path / "out" / "model")
    centres = {image.name: image.projection_center() for image in found.images.values()}
    for image in truth.images.values():
        distance = np.linalg.norm(centres[f"new/{image.name}"] - image.projection_center())
        assert distance < 0.1
    assert (tmp_path / "out" / "report.html").is_file()
    assert "goes without" not in caplog.text  # photos of the map are not looked for


def test_queries_of_the_names_of_photos_of_the_map_are_refused(place: Path, tmp_path: Path) -> None:
    model = pycolmap.Reconstruction(place / "truth")
    for number, image in enumerate(model.images.values()):
        image.name = f"photos/{image.name}" if number else image.name
    (tmp_path / "model").mkdir()
    model.write(tmp_path / "model")
    build(MapOptions(tmp_path / "model", place, tmp_path / "map", "sift"))
    options = LocalizeOptions(tmp_path / "map", None, place / "photos", tmp_path / "out")
    with pytest.raises(InputError, match=r"photos/000\d\.jpg: give the queries in a folder"):
        localize_run.run(options)


def test_arrays_and_given_cameras(place: Path, localizer: Localizer) -> None:
    assert sfm_matchers.Localizer is Localizer
    truth = pycolmap.Reconstruction(place / "new_truth")
    image = next(image for image in truth.images.values() if image.name == "0000.jpg")
    pixels = cv2.imread(str(place / "new" / "0000.jpg"))[..., ::-1]
    found = localizer.localize(np.ascontiguousarray(pixels), image.camera)
    assert found.status is Status.LOCALIZED
    assert found.covariance is not None
    centre = found.cam_from_world.inverse().translation
    assert np.linalg.norm(centre - image.projection_center()) < 0.1
    smaller = pycolmap.Camera.create_from_model_name(1, "PINHOLE", 100.0, 100, 80)
    found = localizer.localize(place / "new" / "0000.jpg", smaller)
    assert (found.status, found.cam_from_world) == (Status.FAILED, None)
    assert "320 x 240" in found.reason
    with pytest.raises(InputError, match="RGB"):
        localizer.localize(np.zeros((5, 5)))
    blank = localizer.localize(np.full((240, 320, 3), 127, np.uint8))
    assert blank.status is Status.FALLBACK


def test_few_photos_are_enough_where_they_hold_the_pose(place: Path) -> None:
    path = place / "new" / "0000.jpg"
    with Localizer(place / "ready", enough_inliers=30) as quick:
        found = quick.localize(path)
    assert found.status is Status.LOCALIZED
    assert 2 <= len(found.database_names) < 6
    truth = pycolmap.Reconstruction(place / "new_truth")
    image = next(image for image in truth.images.values() if image.name == "0000.jpg")
    centre = found.cam_from_world.inverse().translation
    assert np.linalg.norm(centre - image.projection_center()) < 0.1
    with (
        Localizer(place / "ready", enough_inliers=10**6) as slow,
        Localizer(place / "ready", enough_inliers=None) as usual,
    ):
        matched = [set(one.localize(path).database_names) for one in (slow, usual)]
        assert matched[0] == matched[1]


def test_damage_and_wrong_folders_are_said(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sfm-matchers map build"):
        Localizer(place / "truth")
    for name in (map_folder.FEATURES, map_folder.RETRIEVAL, "model/points3D.bin"):
        broken = tmp_path / name.replace("/", "-")
        shutil.copytree(place / "ready", broken)
        (broken / name).write_bytes((broken / name).read_bytes()[:-100])
        with pytest.raises(InputError, match=Path(name).name):
            Localizer(broken)
        assert map.main(["check", str(broken)]) == 2
        (broken / name).unlink()
        with pytest.raises(InputError, match="is missing"):
            Localizer(broken)
    assert map.main(["check", str(place / "ready")]) == 0
    options = MapOptions(place / "truth", place / "photos", tmp_path / "map", "jamma")
    with pytest.raises(InputError, match="--map_images"):
        build(options)


def test_nothing_is_computed_twice(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by a second build, nor after a run of sfm with the same matcher."""
    shutil.copytree(place / "ready", tmp_path / "ready")
    run = tmp_path / "run"
    shutil.copytree(place / "truth", run / "sparse" / "0")
    shutil.copy(place / "ready" / map_folder.FEATURES, run / "feats-sift.h5")

    def fail(*_: object) -> None:
        raise AssertionError("features are extracted again")

    monkeypatch.setattr("sfm_matchers.features.extraction.load_extractor", fail)
    model = tmp_path / "ready" / "model" / "points3D.bin"
    made = model.stat().st_mtime_ns
    build(MapOptions(place / "truth", place / "photos", tmp_path / "ready", "sift"))
    assert model.stat().st_mtime_ns == made
    build(MapOptions(run, place / "photos", tmp_path / "other", "sift"))
    for name in ("model/points3D.bin", "model/images.bin"):
        assert (tmp_path / "other" / name).read_bytes() == (place / "ready" / name).read_bytes()


def test_frames_get_what_their_neighbours_see() -> None:
    lists = [["a", "b"], [], ["c", "a"], ["d", "e"]]
    extended = with_neighbours(lists)
    assert [new[: len(old)] for new, old in zip(extended, lists, strict=True)] == lists
    assert extended[0] == ["a", "b", "c"]
    assert extended[1] == ["a"]
    assert with_neighbours([["a"]]) == [["a"]]


def test_turned_photos_are_localized_by_a_matcher_that_knows_the_world_upright(
    place: Path, tmp_path: Path
) -> None:
    build(MapOptions(place / "truth", place / "photos", tmp_path / "map", num_covis=2))
    truth = pycolmap.Reconstruction(place / "new_truth")
    image = next(image for image in truth.images.values() if image.name == "0000.jpg")
    upright = read_image(place / "new" / "0000.jpg")
    with Localizer(tmp_path / "map", enough_inliers=30) as localizer:
        for quarters in (0, 2, 3):
            found = localizer.localize(np.ascontiguousarray(np.rot90(upright, quarters)))
            assert found.status is Status.LOCALIZED
            centre = found.cam_from_world.inverse().translation
            assert np.linalg.norm(centre - image.projection_center()) < 0.1
        # EXIF says that what is upright lies on its side.
        wrong = Image.Exif()
        wrong[EXIF_ORIENTATION] = 6
        Image.fromarray(upright).save(tmp_path / "wrong.jpg", exif=wrong, quality=95)
        found = localizer.localize(tmp_path / "wrong.jpg")
        assert found.status is Status.LOCALIZED
        centre = found.cam_from_world.inverse().translation
        assert np.linalg.norm(centre - image.projection_center()) < 0.1
        blank = localizer.localize(np.full((240, 320, 3), 127, np.uint8))
        assert blank.status is Status.FALLBACK
