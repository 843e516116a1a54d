"""Files that take the places of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sfm_matchers.files.replacing import has_unfinished_log, move_files, replacing


def replace(source: Path, folder: Path) -> None:
    with replacing(folder / "database.db") as temporary:
        (source / "database.db").replace(temporary)


@pytest.mark.parametrize("take_place", [replace, move_files])
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_bytes(b"of another")])
def test_logs_of_an_earlier_database_go(
    tmp_path: Path,
    take_place: Callable[[Path, Path], None],
    suffix: str,
    make: Callable[[Path], object],
) -> None:
    source, folder = tmp_path / "new", tmp_path / "out"
    source.mkdir()
    folder.mkdir()
    (source / "database.db").write_text("new")
    (folder / "database.db").write_text("old")
    make(folder / f"database.db{suffix}")
    take_place(source, folder)
    assert (folder / "database.db").read_text() == "new"
    assert not has_unfinished_log(folder / "database.db")
    assert not (folder / f"database.db{suffix}").exists()
