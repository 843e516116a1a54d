"""Runs that know where their photos were taken."""

from __future__ import annotations

import json
import logging
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from gps_tags import GPS_IFD, gps_tags
from PIL import Image
from rendered_room import photograph_room

from pipelines.sfm import main
from sfm_matchers.errors import InputError
from sfm_matchers.files.fingerprints import content_hash
from sfm_matchers.files.hdf5 import list_groups
from sfm_matchers.files.pair_lists import read_pairs, write_pairs
from sfm_matchers.geometry.coordinates import WGS84, Frame, geodetic_from_local
from sfm_matchers.pairs import automatic as policies
from sfm_matchers.pairs.automatic import auto_pairs, pairs_in_order
from sfm_matchers.runs import forecast, verdict
from sfm_matchers.runs.georeference import earth_axes, earth_axes_of
from sfm_matchers.runs.localize import localize
from sfm_matchers.runs.map_build import build
from sfm_matchers.runs.options import MapOptions, SfmOptions
from sfm_matchers.runs.reconstruct import run
from sfm_matchers.runs.workspace import Workspace

pytestmark = pytest.mark.slow

FRAME = Frame(WGS84, (60.0, 10.0, 100.0))
NUM_PHOTOS = 9


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered photos of one place, with GPS exact to 1 cm in EXIF: images/ and truth/."""
    folder = tmp_path_factory.mktemp("photos")
    photograph_room(folder, NUM_PHOTOS)
    rng = np.random.default_rng(0)
    for name, center in true_centres(folder).items():
        place = geodetic_from_local(center + rng.normal(0, 0.01, 3), FRAME)[0]
        path = folder / "images" / name
        photo = Image.open(path)
        exif = Image.Exif()
        exif[GPS_IFD] = gps_tags(*place.tolist())
        photo.save(path, exif=exif, quality=95)
    return folder


def true_centres(folder: Path) -> dict[str, np.ndarray]:
    truth = pycolmap.Reconstruction(folder / "truth")
    return {image.name: image.projection_center() for image in truth.images.values()}


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("finished")
    arguments = ["--image_dir", str(photos / "images"), "--outputs", str(outputs)]
    assert main([*arguments, "--matcher", "sift"]) == 0
    return outputs


@pytest.fixture
def outputs(finished: Path, tmp_path: Path) -> Path:
    """Outputs in which there are the features only."""
    (tmp_path / "out").mkdir()
    for path in [*finished.glob("feats-*.h5"), finished / "photos.json"]:
        shutil.copy(path, tmp_path / "out")
    return tmp_path / "out"


def test_a_run_with_gps_gives_a_model_in_metres(photos: Path, finished: Path) -> None:
    model = pycolmap.Reconstruction(finished / "georeferenced")
    true = true_centres(photos)
    own = {image.name: image.projection_center() for image in model.images.values()}
    assert len(own) == NUM_PHOTOS
    shifts = np.array([own[name] - true[name] for name in own])
    shifts -= shifts.mean(axis=0)  # the origin is in the middle of the photos
    assert np.linalg.norm(shifts, axis=1).max() < 0.05
    written = json.loads((finished / "georeferenced" / "georeference.json").read_text())
    assert written["reference"]["latitude"] == pytest.approx(60, abs=1e-3)
    assert f"{NUM_PHOTOS} of {NUM_PHOTOS} photos" in written["summary"]
    axes = earth_axes(Workspace(finished))
    assert axes is not None
    assert axes @ axes.T == pytest.approx(np.eye(3))
    apart = [pycolmap.Reconstruction(finished / kind) for kind in ("sparse/0", "georeferenced")]
    before, after = (next(iter(one.images.values())).viewing_direction() for one in apart)
    assert axes @ before == pytest.approx(after, abs=0.01)
    assert "Up is as georeferenced" in (finished / "report.html").read_text()


@pytest.mark.parametrize("named", ["", "sparse/0", "georeferenced"])
def test_a_report_of_new_photos_has_up_where_the_map_knows_it(
    finished: Path, photos: Path, tmp_path: Path, named: str
) -> None:
    axes = earth_axes_of(finished / named)
    expected = np.eye(3) if named == "georeferenced" else earth_axes(Workspace(finished))
    assert axes == pytest.approx(expected)
    options = MapOptions(finished / named, photos / "images", tmp_path / "map", "sift")
    assert build(options).earth == pytest.approx(expected)
    photograph_room(tmp_path / "other", 1, seed=2)
    new = tmp_path / "other" / "images"
    result = localize(tmp_path / "map", None, new, tmp_path / "out")
    assert "Up is as georeferenced" in result.files["report"].read_text()
    assert result.earth == pytest.approx(expected)
    if not named:
        result = localize(finished, photos / "images", new, tmp_path / "out2", matcher="sift")
        assert "Up is as georeferenced" in result.files["report"].read_text()


def test_up_is_not_known_of_other_models(photos: Path, finished: Path, tmp_path: Path) -> None:
    assert earth_axes_of(photos / "truth") is None
    shutil.copytree(finished / "sparse", tmp_path / "out" / "sparse")
    (tmp_path / "out" / "georeferenced").mkdir()
    written = tmp_path / "out" / "georeferenced" / "georeference.json"
    for text in ("{}", "no json", '{"transform": [1, 2]}'):
        written.write_text(text)
        assert earth_axes_of(tmp_path / "out") is None


def test_a_second_run_does_not_georeference_again(photos: Path, finished: Path) -> None:
    before = (finished / "georeferenced" / "georeference.json").stat().st_mtime_ns
    result = run(SfmOptions(photos / "images", finished, matcher="sift"))
    assert (finished / "georeferenced" / "georeference.json").stat().st_mtime_ns == before
    assert "residuals 0.0" in result.summary["georeference"]
    assert "georeference" in result.summary["seconds"]
    assert "residuals 0.0" in result.report.read_text()


def test_georeference_by_a_table_and_off(photos: Path, finished: Path, tmp_path: Path) -> None:
    table = tmp_path / "places.csv"
    rows = [f"{name},{','.join(map(str, xyz))}" for name, xyz in true_centres(photos).items()]
    table.write_text("\n".join(["name,x,y,z", *rows, ""]))
    options = SfmOptions(photos / "images", finished, matcher="sift", georeference=table)
    assert str(table) in run(options).summary["georeference"]
    model = pycolmap.Reconstruction(finished / "georeferenced")
    own = {image.name: image.projection_center() for image in model.images.values()}
    true = true_centres(photos)
    assert max(np.linalg.norm(own[name] - true[name]) for name in own) < 0.02
    options = SfmOptions(photos / "images", finished, matcher="sift", georeference="none")
    assert "georeference" not in run(options).summary
    assert not (finished / "georeferenced").exists()


def test_faults_of_a_file_are_told_before_matching(photos: Path, tmp_path: Path) -> None:
    for path, text in ((tmp_path / "a.csv", "a,b\n"), (tmp_path / "none.csv", None)):
        if text:
            path.write_text(text)
        options = SfmOptions(photos / "images", tmp_path / "out", "sift", georeference=path)
        with pytest.raises(InputError):
            run(options)
    assert not list((tmp_path / "out").glob("*.h5"))


def test_pairs_by_position(photos: Path, outputs: Path) -> None:
    options = SfmOptions(photos / "images", outputs, "sift", pairs="spatial", num_matched=3)
    assert run(options).models
    pairs = read_pairs(outputs / "pairs-spatial3.txt")
    true = true_centres(photos)
    assert NUM_PHOTOS * 3 / 2 <= len(pairs) <= NUM_PHOTOS * 3
    names = sorted(true)
    for name in names:
        nearest = min(names, key=lambda other: np.linalg.norm(true[name] - true[other]) or 1e9)
        assert (name, nearest) in pairs or (nearest, name) in pairs


def test_pairs_by_position_need_positions(tmp_path: Path) -> None:
    for index in range(3):
        Image.new("RGB", (64, 48), (index, 0, 0)).save(tmp_path / f"{index}.png")
    options = SfmOptions(tmp_path, tmp_path / "out", "sift", pairs="spatial")
    with pytest.raises(InputError, match="0 of 3 have one: give --georeference"):
        run(options)


def test_few_photos_are_matched_all_with_all(tmp_path: Path) -> None:
    def never() -> Path:
        raise AssertionError

    names = [f"{i}.jpg" for i in range(25)]
    for is_fast, count in ((False, 25), (True, 25)):
        pairs, label = auto_pairs(
            tmp_path, names[:count], 20, is_fast=is_fast, positions=never, describe=never
        )  # type: ignore[arg-type]
        assert (len(pairs), label) == (300, "exhaustive")


def test_many_photos_are_matched_with_likely_ones(
    photos: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "MAX_PAIRS_FAST", 10)
    monkeypatch.setattr(policies, "NUM_IN_ORDER", 1)
    options = SfmOptions(photos / "images", outputs, "sift", num_matched=2)
    assert run(options).models
    pairs = read_pairs(outputs / "pairs-auto2.txt")
    assert NUM_PHOTOS <= len(pairs) < 36
    names = sorted(true_centres(photos))
    for pair in pairwise(names):
        assert pair in pairs or pair[::-1] in pairs


def test_order_by_time_or_name() -> None:
    names = ["f10", "f9", "f1"]
    assert pairs_in_order(names, {}, 1) == [("f1", "f9"), ("f9", "f10")]
    times = {"f10": "2024:01:01 10:00:00.", "f9": "2024:01:01 10:00:05.", "f1": None}
    assert pairs_in_order(names, times, 1) == [("f1", "f9"), ("f9", "f10")]
    times["f1"] = "2024:01:01 10:00:02."
    assert pairs_in_order(names, times, 2) == [("f10", "f1"), ("f10", "f9"), ("f1", "f9")]


def test_long_work_is_announced(
    photos: Path,
    finished: Path,
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(forecast, "most_pairs", lambda *, is_fast: 30)
    caplog.set_level(logging.INFO)
    options = SfmOptions(photos / "images", outputs, "sift", pairs="exhaustive")
    run(options)
    lines = [line for line in caplog.messages if "on this device" in line]
    assert len(lines) == 1
    assert lines[0].startswith("36 pairs (--pairs exhaustive), about ")
    caplog.clear()
    run(options)  # nothing is left to match
    assert not [line for line in caplog.messages if "on this device" in line]
    name = "matches-sift-NN-ratio_pairs-exhaustive.h5"
    assert list_groups(finished / name) == list_groups(outputs / name)
    assert content_hash(finished / name) == content_hash(outputs / name)


def test_a_shorter_option_is_named(
    photos: Path,
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = sorted(true_centres(photos))
    path = outputs.parent / "pairs.txt"
    write_pairs(path, [(a, b) for a in names for b in names if a < b][:24])
    monkeypatch.setattr(forecast, "most_pairs", lambda *, is_fast: 13)
    caplog.set_level(logging.INFO)
    run(SfmOptions(photos / "images", outputs, "sift", pairs=path))
    assert any("24 pairs" in line and "Shorter: fewer photos" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(20, "20 seconds"), (300, "5 minutes"), (250 * 3600, "250.0 hours")],
)
def test_durations(seconds: float, text: str) -> None:
    assert verdict.duration(seconds) == text
