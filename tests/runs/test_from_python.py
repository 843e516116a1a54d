"""The work of a run, called from Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from rendered_room import photograph_room

import sfm_matchers
from sfm_matchers import Matches
from sfm_matchers.confs import load_conf
from sfm_matchers.errors import InputError
from sfm_matchers.files.hdf5 import list_groups
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.results import LocalizeResult, SfmResult
from sfm_matchers.runs.verdict import Verdict
from sfm_matchers.synthetic import Camera

pytestmark = pytest.mark.slow


def test_an_empty_path_is_none_and_matchers_are_named_in_any_case(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^outputs: an empty path"):
        sfm_matchers.reconstruct(tmp_path, "")
    assert load_conf("Aliked+MambaGlue").name == "aliked+mambaglue"
    options = SfmOptions(tmp_path, tmp_path / "out", matcher="Auto", camera_model="AUTO")
    assert (options.matcher, options.camera_model) == ("auto", "auto")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered photos: images/ for a map, and one of them in new/."""
    folder = tmp_path_factory.mktemp("photos")
    photograph_room(folder, 6, camera=Camera.from_field_of_view(240, 180), texture_size=256)
    (folder / "new").mkdir()
    shutil.copy(folder / "images" / "0003.jpg", folder / "new" / "again.jpg")
    return folder


def test_public_names_are_there_and_imported_late() -> None:
    assert set(sfm_matchers.__all__) <= set(dir(sfm_matchers))
    for name in sfm_matchers.__all__:
        assert getattr(sfm_matchers, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sfm_matchers.nothing  # noqa: B018
    assert "jamma" in [one.name for one in sfm_matchers.list_matchers()]
    assert (Path(sfm_matchers.__file__).parent / "py.typed").is_file()
    code = (
        "import sys, sfm_matchers; dir(sfm_matchers); sfm_matchers.SfmOptions; "
        "assert not {'torch', 'pycolmap', 'cv2', 'h5py'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_mistyped_options_name_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'matcher'"):
        sfm_matchers.reconstruct(tmp_path, tmp_path / "out", macher="sift")
    with pytest.raises(InputError, match="did you mean 'retrieval'"):
        sfm_matchers.localize(tmp_path, tmp_path, tmp_path, tmp_path / "out", retreival="vlad")
    with pytest.raises(InputError, match="matches photos without features"):
        sfm_matchers.extract(tmp_path, tmp_path / "out", matcher="jamma")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_map_that_is_not_there_is_said_to_be_so(photos: Path, tmp_path: Path) -> None:
    """Not that the photos of the map are missing, which a map folder needs none of."""
    with pytest.raises(InputError, match="mpa is no map and no COLMAP model: there is no such"):
        sfm_matchers.localize(tmp_path / "mpa", None, photos, tmp_path / "out")


def test_steps_go_on_from_one_another(photos: Path, tmp_path: Path) -> None:
    images, outputs = str(photos / "images"), str(tmp_path / "out")
    features = sfm_matchers.extract(images, outputs)
    assert len(list_groups(features)) == 6
    made = features.stat().st_ino
    matched = sfm_matchers.match(images, outputs, pairs="exhaustive")
    assert matched.features == features
    assert features.stat().st_ino == made
    assert len(matched.pairs) == len(list_groups(matched.matches)) == 15
    assert repr(matched) == f"MatchResult(15 pairs, {str(matched.matches)!r})"

    result = sfm_matchers.reconstruct(images, outputs, matcher="sift", pairs="exhaustive")
    assert features.stat().st_ino == made
    assert result.model is result.models[0]
    assert result.verdict.level == result.summary["verdict_level"] == "good"
    assert repr(result).startswith("SfmResult(all 6 photos are in the model")
    shown = result._repr_html_()
    assert "6 of 6" in shown
    assert "data:image/jpeg;base64," in shown
    assert len(shown) < 150_000

    found = sfm_matchers.localize(outputs, images, photos / "new", tmp_path / "located")
    (query,) = found.queries
    assert query.name.endswith("again.jpg")
    assert found.verdict.text == "1 of 1 query localized"
    shown = found._repr_html_()
    assert "<b>1 of 1</b><br>localized" in shown
    assert "inliers of a localized photo (median)" in shown
    assert "data:image/jpeg;base64," in shown
    assert len(shown) < 150_000
    assert len(repr(found)) < 200
    points = f"{query.num_inliers} of {len(query.inliers)} points agree"
    assert repr(query) == f"LocalizedQuery({query.name!r}, localized, {points})"


def test_matches_say_how_many_they_are() -> None:
    points = np.zeros((5000, 2), np.float32)
    matches = Matches(points, points, np.ones(5000, np.float32))
    assert repr(matches) == "Matches(5000 pairs of points)"


def test_results_without_a_model_are_shown_too(tmp_path: Path) -> None:
    summary = {"verdict": "no model of <3> photos", "verdict_level": "poor", "model": "none"}
    result = SfmResult([], summary, tmp_path / "report.html")
    assert result.model is None
    assert "&lt;3&gt;" in result._repr_html_()
    located = LocalizeResult(
        [], pycolmap.Reconstruction(), {"report": tmp_path}, {}, Verdict("poor", "none")
    )
    assert "none" in repr(located)
