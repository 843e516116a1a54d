"""Paths that are not there, and what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfm_matchers.files.nearest import nearest_path


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("Photos/castle", ""),
        ("Photos", ""),
        ("Photos/castel", "did you mean {root}/Photos/castle?"),
        ("photoss/castle", "did you mean {root}/Photos/castle?"),
        ("PHOTO/of/nothing", "did you mean {root}/Photos?"),
        ("Photos/castle/new", "there is no such file or folder"),
        ("elsewhere/castle", "there is no such file or folder"),
    ],
)
def test_the_nearest_path_is_named(tmp_path: Path, given: str, hint: str) -> None:
    (tmp_path / "Photos" / "castle").mkdir(parents=True)
    expected = hint and ": " + hint.format(root=tmp_path)
    assert nearest_path(tmp_path / given) == expected


def test_a_path_stays_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert nearest_path("fotos") == ": did you mean photos?"
