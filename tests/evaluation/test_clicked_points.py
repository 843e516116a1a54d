"""The benchmark on points clicked by hand, of which these are exact."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import clicked_points
from sfm_matchers.synthetic import Camera, camera_path, make_scene, project, render, unproject


def write_place(folder: Path) -> None:
    """Two photos of a place, and points that both see."""
    folder.mkdir(parents=True)
    camera = Camera.from_field_of_view(320, 240)
    scene = make_scene(2, texture_size=256)
    views = camera_path(scene, count=40)[:2]
    photos = [render(scene, camera, view) for view in views]
    for stem, photo in zip(("01", "02"), photos, strict=True):
        cv2.imwrite(str(folder / f"{stem}.png"), photo.image[..., ::-1])
    rows, columns = np.meshgrid(np.arange(30, 200, 40), np.arange(40, 300, 40))
    points = unproject(photos[0].depth, camera, views[0])[rows.ravel(), columns.ravel()]
    seen, _ = project(points, camera, views[1])
    clicked = np.column_stack([columns.ravel(), rows.ravel(), seen])
    np.savetxt(folder / "corrs.txt", clicked[np.isfinite(clicked).all(1)])


@pytest.mark.slow
def test_a_place_without_its_photos_is_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_place(tmp_path / "WGBS" / "court")
    shutil.copytree(tmp_path / "WGBS" / "court", tmp_path / "WGBS" / "lost")
    (tmp_path / "WGBS" / "lost" / "02.png").unlink()
    monkeypatch.setattr(sys, "argv", ["clicked_points", str(tmp_path), "--matchers", "sift"])
    clicked_points.main()
    printed = capsys.readouterr().out
    assert "WGBS/lost: no photo 02, left out" in printed
    assert "1 of 1 solved" in printed


def test_a_folder_without_places_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["clicked_points", str(tmp_path)])
    with pytest.raises(SystemExit):
        clicked_points.main()
    assert "has no KIND/PLACE" in capsys.readouterr().err
