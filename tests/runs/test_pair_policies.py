"""The table of pair policies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfm_matchers import choices, reconstruct
from sfm_matchers.runs.pairs import POLICIES


def test_the_table_holds_what_the_command_line_names() -> None:
    assert tuple(POLICIES) == choices.POLICIES


def test_places_are_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(photos / f"{name}.png")
    table = tmp_path / "places.csv"
    table.write_text("name,x,y,z\na.png,0,0,0\nb.png,1,0,0\nc.png,2,0,0\n")
    caplog.set_level("INFO")
    reconstruct(photos, tmp_path / "out", matcher="sift", pairs="spatial", georeference=table)
    assert caplog.text.count("1 photos of it are not there, as c.png") == 1
