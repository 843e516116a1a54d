"""The page about new photos in a map: what became of each, and where they stand in 3D."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from localization_page import ODD_NAME, make_results, write_page
from PIL import Image
from report_page import Page, make_scene

from sfm_matchers.reports import localization
from sfm_matchers.reports.localization import KINDS, write_localization_report


@pytest.fixture
def page(tmp_path: Path) -> Page:
    scene = make_scene(tmp_path)
    return Page(write_page(tmp_path, scene.model, make_results(scene.model)))


def test_it_stands_alone_and_names_cannot_break_out(page):
    assert page.tags.count("script") == 2
    assert page.data["names"][1] == ODD_NAME
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)


def test_the_verdict_stands_on_top(tmp_path):
    model = make_scene(tmp_path).model
    summary = {"verdict": "1 of <4> localized", "verdict_level": "poor"}
    path = write_localization_report(
        tmp_path / "report.html", tmp_path / "images", model, make_results(model), summary
    )
    box = '<p class="verdict poor" role="status">1 of &lt;4&gt; localized</p>'
    assert box in path.read_text(encoding="utf-8")


def test_every_photo_is_listed_with_what_became_of_it(page):
    rows = {row[0]: row[1].strip() for row in page.rows if len(row) == 7}
    assert rows[ODD_NAME].strip() == "localized"
    assert rows["new/b.png"] == "low confidence: few <inliers>"
    assert rows["new/c.png"] == "failed: it is <dark>"
    assert "1 localized, 1 low confidence, 1 fallback, 1 failed" in page.text


def test_photos_without_a_pose_of_their_own_are_listed_with_the_reason(page):
    rows = [row for row in page.rows if len(row) == 3]
    assert ["new/c.png", "failed", "it is <dark>"] in rows
    assert ["new/d.png", "fallback", "no matches"] in rows


def test_photos_with_poses_stand_where_they_were_taken(page):
    frusta = page.array(page.data["frusta"], "<f4").reshape(-1, 5, 3)
    kinds = [KINDS[kind]["label"] for kind in page.data["kind_of"]]
    shown = {
        page.data["names"][row]: (kind, frustum)
        for row, kind, frustum in zip(page.data["cameras"], kinds, frusta, strict=True)
    }
    in_map = [name for name, (kind, _) in shown.items() if kind == "map"]
    assert {name: kind for name, (kind, _) in shown.items() if kind != "map"} == {
        ODD_NAME: "localized",
        "new/b.png": "low confidence",
    }
    assert shown[ODD_NAME][1] == pytest.approx(shown[in_map[0]][1], abs=1e-5)
    assert shown["new/b.png"][1] == pytest.approx(shown[in_map[1]][1], abs=1e-5)
    sigmas = dict(zip(page.data["cameras"], page.data["sigmas"], strict=True))
    assert sigmas[1] * page.data["world"]["radius"] == pytest.approx(np.sqrt(3e-4))
    assert sigmas[0] == 0


def test_the_path_follows_the_list_of_photos(page):
    walk = [page.data["names"][page.data["cameras"][camera]] for camera in page.data["path"]]
    assert walk == ["new/b.png", ODD_NAME]


def test_a_photo_at_the_other_end_of_the_world_does_not_shrink_the_view(tmp_path):
    scene = make_scene(tmp_path)
    results = make_results(scene.model)
    pose = results[0].cam_from_world
    results[0].cam_from_world = pycolmap.Rigid3d(pose.rotation, pose.translation + 1e4)
    page = Page(write_page(tmp_path, scene.model, results))
    assert page.data["num_in_view"] == len(page.data["cameras"]) - 1
    assert page.data["cameras"][-1] == 0


def test_without_any_query(tmp_path):
    page = Page(write_page(tmp_path, make_scene(tmp_path).model, []))
    assert "0 new photos" in page.text


def test_without_scripts_there_is_a_picture_of_the_map(tmp_path):
    scene = make_scene(tmp_path)
    text = write_page(tmp_path, scene.model, make_results(scene.model)).read_text(encoding="utf-8")
    assert '<noscript><figure class=wide><img src="data:image/jpeg;base64,' in text


def test_photos_stand_beside_others_where_there_are_some(tmp_path, monkeypatch):
    scene = make_scene(tmp_path)
    results = make_results(scene.model)
    heading = "Photos beside what supports them best"
    assert heading not in Page(write_page(tmp_path, scene.model, results)).text
    for result, name in zip(results, scene.names, strict=False):
        result.name, result.database_names = name, scene.names[:1]
    page = Page(write_page(tmp_path, scene.model, results))
    assert heading in page.text
    assert "evenly spread" not in page.text
    monkeypatch.setattr(localization, "MAX_PICTURES", 2)
    page = Page(write_page(tmp_path, scene.model, results))
    assert "2 of 4 photos, evenly spread." in page.text


def test_the_picture_in_a_notebook_is_upright_by_exif(tmp_path, monkeypatch):
    scene = make_scene(tmp_path)
    exif = Image.Exif()
    exif[274] = 3  # upside down
    path = tmp_path / "images" / scene.names[0]
    Image.open(path).save(path, exif=exif)
    ways_up = []
    build = localization.build_scene
    monkeypatch.setattr(
        localization,
        "build_scene",
        lambda model, ways, **_: ways_up.append(ways) or build(model, ways),
    )
    for folder in ("images", "nowhere"):
        localization.draw_localized(scene.model, scene.names[:1], tmp_path / folder)
    upright = dict.fromkeys(scene.names, 1)
    assert ways_up == [upright | {scene.names[0]: 3}, upright]
