"""One class owns the output folder of a run."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

import sfm_matchers
from sfm_matchers.confs import DetectorFreeConf, FrontEnd, SparseConf, load_conf
from sfm_matchers.errors import InputError
from sfm_matchers.photos.folders import REPORT_PICTURES
from sfm_matchers.runs.workspace import Workspace

LABEL = "pairs-exhaustive"


def test_names_are_those_of_hloc(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    sift, jamma = load_conf("sift"), load_conf("jamma")
    assert workspace.pairs(LABEL) == tmp_path / "pairs-exhaustive.txt"
    assert workspace.features(sift).name == "feats-sift.h5"
    assert workspace.matches(sift, LABEL).name == "matches-sift-NN-ratio_pairs-exhaustive.h5"
    stem = jamma.output.removeprefix("matches-")
    assert workspace.features(jamma).name == f"feats-{stem}.h5"
    assert workspace.features(jamma, LABEL).name == f"feats-{stem}_{LABEL}.h5"
    assert workspace.correspondences(jamma, LABEL).name == f"correspondences-{stem}_{LABEL}.h5"


def test_no_two_files_of_a_conf_are_one(tmp_path: Path) -> None:
    """Whatever its `output` is: today's `matches-` may be missing."""
    workspace = Workspace(tmp_path)
    for output in ("matches-mine", "mine", "my-matches-of-it", "matches-matches-x"):
        conf = DetectorFreeConf("mine", output, {"name": "jamma"}, 3.0, 8.0)
        found = [
            workspace.features(conf),
            workspace.matches(conf, LABEL),
            workspace.correspondences(conf, LABEL),
        ]
        assert len(set(found)) == 3
        sparse = SparseConf("mine", output, {"name": "sift"}, FrontEnd("sift", output="feats-mine"))
        assert workspace.matches(sparse, LABEL) != workspace.features(sparse)


def test_a_run_does_not_say_that_it_changed_its_own_inputs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    workspace = Workspace(tmp_path)
    workspace.report.write_text("a")
    workspace.set_done("report", "x", workspace.report)
    assert not workspace.is_done("report", "y")
    assert caplog.text == ""


def test_what_is_done_is_known_by_what_it_was_made_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    workspace = Workspace(tmp_path)
    workspace.report.write_text("a")
    assert not workspace.is_done("report", "x")
    workspace.set_done("report", "x", workspace.report)
    assert Workspace(tmp_path).is_done("report", "x")
    assert not Workspace(tmp_path).is_done("report", "y")
    assert "report: photos, matches or settings have changed" in caplog.text
    assert not workspace.is_done("report", "x")  # the note is gone
    workspace.set_done("report", "x", workspace.report)
    workspace.report.write_text("b")
    assert not workspace.is_done("report", "x")
    assert "is missing or damaged" in caplog.text


def test_seconds_add_up(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for _ in range(2):
        with workspace.timed("matching"):
            time.sleep(0.03)
    with workspace.trial() as trial, trial.timed("mapping"):
        trial.report.touch()
        assert trial.path.is_dir()
    assert set(workspace.seconds) == {"matching", "mapping"}
    assert workspace.seconds["matching"] >= 0.06
    assert not list(tmp_path.iterdir())


def work(workspace: Workspace, step: str, name: str, text: str = "a") -> None:
    """Do a step that writes a file, as runs do: a new one takes the place of the old one."""
    with workspace.timed(step):
        time.sleep(0.05)
        temporary = workspace.path / ".new"
        temporary.write_text(text)
        temporary.replace(workspace.path / name)


def test_a_run_with_nothing_to_do_keeps_the_seconds_of_the_one_that_did_it(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    work(workspace, "photos", "photos.json")
    work(workspace, "features", "feats-sift.h5")
    assert workspace.has_worked
    workspace.keep_seconds()
    first = workspace.seconds
    assert all(value >= 0.05 for value in first.values())

    workspace = Workspace(tmp_path)
    with workspace.timed("photos"):
        workspace.photos.write_text("a")
    with workspace.timed("features"):
        pass
    assert not workspace.has_worked
    assert workspace.seconds == first
    with workspace.timed("localization", always_works=True):
        pass
    assert workspace.seconds.keys() == {*first, "localization"}


def test_a_step_that_works_has_its_own_seconds(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for step in ("features", "matching", "keypoints"):
        work(workspace, step, f"{step}.h5")
    workspace.keep_seconds()
    first = workspace.seconds

    workspace = Workspace(tmp_path)
    with workspace.timed("features"):
        pass
    with workspace.timed("matching"):
        (tmp_path / "matching.h5").write_text("another")
    with workspace.timed("mapping"):
        pass
    assert workspace.seconds["features"] == first["features"]
    assert workspace.seconds["matching"] < 0.05
    assert workspace.seconds.keys() == {"features", "matching", "mapping"}


def test_a_killed_run_leaves_the_seconds_of_what_it_finished(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    work(workspace, "matching", "matches.h5")
    workspace.set_done("database.db", "source")
    workspace = Workspace(tmp_path)
    with workspace.timed("matching"):
        pass
    assert workspace.seconds["matching"] >= 0.05


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    first, second = Workspace(tmp_path).alone(), Workspace(tmp_path).alone()
    with first, pytest.raises(InputError, match="another run is working"), second:
        pass


def test_a_database_that_must_not_be_written_to_becomes_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite writes to what it opens; without a right to, COLMAP raises something."""
    databases = [tmp_path / "database.db", tmp_path / "map-sift" / "database.db"]
    for path in databases:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"tables")
        path.chmod(0o444)
    # Who is root may write in spite of it.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with Workspace(tmp_path).alone():
        for path in databases:
            assert path.read_bytes() == b"tables"
            assert path.stat().st_mode & 0o200


def test_clear_deletes_what_runs_write_and_nothing_else(tmp_path: Path) -> None:
    workspace, conf = Workspace(tmp_path), load_conf("jamma")
    files = [
        workspace.photos,
        workspace.notes,
        workspace.report,
        *workspace.pictures,
        workspace.database,
        workspace.database.with_name("database.db-wal"),
        workspace.cameras,
        workspace.camera_models,
        workspace.pairs(LABEL),
        workspace.pairs(f"{LABEL}-again"),
        workspace.features(conf),
        workspace.matches(conf, LABEL),
        workspace.correspondences(conf, LABEL),
        *workspace.joined(LABEL),
        workspace.global_features("vlad"),
        tmp_path / ".feats-sift.h5.sha256",
        workspace.model / "images.bin",
        workspace.georeferenced / "images.bin",
        tmp_path / "feats-sift.h5.parts" / "00000000.h5",
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    kept = [tmp_path / name for name in ("a.jpg", "notes.txt", "matches.csv", "pairs.txt")]
    for file in kept:
        file.touch()
    workspace.clear()
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_pictures_in_a_folder_without_a_run_are_not_ours(tmp_path: Path) -> None:
    for name in REPORT_PICTURES:
        (tmp_path / name).touch()
    Workspace(tmp_path).clear()
    assert len(list(tmp_path.iterdir())) == len(REPORT_PICTURES)
    Workspace(tmp_path / "missing").clear()


def test_nobody_else_makes_up_names() -> None:
    """In the rooms that play a run, only the workspace spells names of outputs."""
    names = re.compile(
        r'"(?:[^"\n]*\b(?:feats|matches|correspondences|global-feats)-[^"\n]*"|'
        r'(?:database\.db|sparse|steps\.json|photos\.json|cameras\.json)")'
    )
    for path in sorted((Path(sfm_matchers.__file__).parent / "runs").glob("*.py")):
        if path.name == "workspace.py":
            continue
        code = re.sub(r'"""[\s\S]*?"""', "", path.read_text(encoding="utf-8"))
        found = [line for line in code.splitlines() if names.search(line)]
        found = [line for line in found if not line.startswith("_DATABASE, _MAPPED")]
        assert not found, f"{path.name}: {found}"
