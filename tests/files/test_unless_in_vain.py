"""A folder that was made for nothing goes again, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfm_matchers.errors import InputError
from sfm_matchers.files.locks import exclusive
from sfm_matchers.files.replacing import unless_in_vain

TRACES = ("log.txt", "*.lock")


def work(folder: Path, *names: str, error: type[Exception] = InputError) -> None:
    """Make files in a folder, and end with an error."""

    def fail() -> None:
        with unless_in_vain(folder, TRACES):
            for name in names:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            raise error("wrong")

    with pytest.raises(error):
        fail()


@pytest.mark.parametrize("names", [(), ("log.txt",), ("a.lock", "build/log.txt")])
def test_traces_go_with_the_folders_that_were_made(tmp_path: Path, names: tuple[str, ...]) -> None:
    work(tmp_path / "new" / "out", *names)
    assert not list(tmp_path.iterdir())


def test_work_stays(tmp_path: Path) -> None:
    work(tmp_path / "out", "log.txt", "build/feats.h5")
    assert (tmp_path / "out" / "log.txt").exists()
    assert (tmp_path / "out" / "build" / "feats.h5").exists()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    work(tmp_path / "out", "log.txt")
    assert (tmp_path / "out" / "log.txt").exists()


def test_what_is_no_fault_of_the_input_leaves_a_log(tmp_path: Path) -> None:
    work(tmp_path / "out", "log.txt", error=ZeroDivisionError)
    assert (tmp_path / "out" / "log.txt").exists()


def test_a_link_to_a_folder_that_is_missing_stays(tmp_path: Path) -> None:
    """As one to a disk that is not mounted."""
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "disk" / "out")

    def run(folder: Path) -> None:
        with unless_in_vain(folder, TRACES), exclusive(folder):
            pass

    for folder in (link, link / "below"):
        with pytest.raises(InputError, match=f"{link} is a link that leads nowhere"):
            run(folder)
        assert link.is_symlink()
