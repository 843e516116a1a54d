"""Results that were damaged, or left behind by a kill, are noticed before they are used."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pycolmap
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rendered_room import photograph_room

from pipelines import export
from pipelines.sfm import main
from sfm_matchers.errors import InputError, OutputError, PhotoChangedError
from sfm_matchers.exports import export_model, remove_exports
from sfm_matchers.exports.outputs import PREPARED
from sfm_matchers.files import revisions, scratch, space
from sfm_matchers.files.fingerprints import content_hash, fingerprint
from sfm_matchers.files.hdf5 import list_groups, open_h5
from sfm_matchers.files.locks import exclusive
from sfm_matchers.files.notes import copy_of, read_memory, write_memory
from sfm_matchers.files.replacing import files_below, replacing_folder, temporary_beside
from sfm_matchers.files.scratch import scratch_folder
from sfm_matchers.files.space import check_space
from sfm_matchers.files.staged import StagedFile
from sfm_matchers.localization.localizer import Localizer
from sfm_matchers.localization.map_folder import read_settings
from sfm_matchers.mapping.models import read_model, write_model
from sfm_matchers.reports import model_in_3d, pictures, reconstruction
from sfm_matchers.runs import mapping, matching
from sfm_matchers.runs.map_build import build
from sfm_matchers.runs.options import MapOptions, SfmOptions
from sfm_matchers.runs.reconstruct import run
from sfm_matchers.runs.workspace import Workspace

pytestmark = pytest.mark.slow

FEATURES = "feats-sift.h5"
MATCHES = "matches-sift-NN-ratio_pairs-exhaustive.h5"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    return photograph_room(folder, 5) / "images"


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("finished")
    run(SfmOptions(photos, outputs, "sift"))
    return outputs


@pytest.fixture
def outputs(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def tables(outputs: Path) -> list[bytes]:
    folder = outputs / "sparse" / "0"
    return [(folder / f"{name}.bin").read_bytes() for name in ("cameras", "images", "points3D")]


def cut(data: bytes) -> bytes:
    return data[: 2 * len(data) // 3]


def flipped(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[2 * len(data) // 3] ^= 4
    return bytes(changed)


def zeroed(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes(len(data[at : at + 512])) + data[at + 512 :]


def emptied(data: bytes) -> bytes:
    return b""


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("database.db", emptied),
        ("database.db", flipped),
        ("sparse/0/images.bin", cut),
        ("sparse/0/points3D.bin", flipped),
        (FEATURES, zeroed),
        (MATCHES, cut),
        ("photos.json", flipped),
        ("cameras.json", flipped),
        ("steps.json", cut),
    ],
)
def test_damaged_results_are_made_again(
    photos: Path,
    finished: Path,
    outputs: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[bytes], bytes],
) -> None:
    path = outputs / name
    path.write_bytes(damage(path.read_bytes()))
    caplog.set_level(logging.WARNING)
    run(SfmOptions(photos, outputs, "sift"))
    assert tables(outputs) == tables(finished)
    (line,) = [record.getMessage() for record in caplog.records if "again" in record.getMessage()]
    assert str(path) in line
    caplog.clear()
    run(SfmOptions(photos, outputs, "sift"))
    assert "again" not in caplog.text


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_folders_and_pipes_in_the_place_of_files_make_way(
    photos: Path, finished: Path, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--image_dir", str(photos), "--outputs", str(outputs), "--matcher", "sift"]
    in_the_way = {
        ".lock": Path.mkdir,
        "photos.json": Path.mkdir,
        FEATURES: os.mkfifo,
        f".{MATCHES}.sha256": Path.mkdir,
        "database.db": os.mkfifo,
        "weakest_pair.png": Path.mkdir,
        "log.txt": os.mkfifo,
        "sparse/0/frames.bin": os.mkfifo,
    }
    for name, make in in_the_way.items():
        (outputs / name).unlink(missing_ok=True)
        make(outputs / name)
    assert main(arguments) == 0
    said = capsys.readouterr().err
    for name in in_the_way:
        (line,) = [line for line in said.splitlines() if f"{outputs / name} " in line]
        assert line.endswith("made again")
    assert tables(outputs) == tables(finished)
    (outputs / "steps.json").unlink()
    (outputs / "steps.json" / "mine").mkdir(parents=True)
    assert main(arguments) == 2
    assert f"{outputs / 'steps.json'} is not a file, as it must be: move it away" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("target", ["itself", "nowhere"])
def test_links_that_lead_nowhere_make_way(
    photos: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    arguments = ["--image_dir", str(photos), "--outputs", str(tmp_path), "--matcher", "sift"]
    arguments += ["--export", "nerfstudio,ply"]
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    assert main(arguments) == 0
    in_the_way = (
        ".lock",
        "steps.json",
        "photos.json",
        FEATURES,
        f".{MATCHES}.sha256",
        "database.db",
        "database.db-wal",
        "report.html",
        "log.txt",
        "sparse/0/frames.bin",
        "images",
        "points3D.ply",
        "sparse_pc.ply",
    )
    for name in in_the_way:
        path = tmp_path / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(path if target == "itself" else tmp_path / "not" / "there")
    capsys.readouterr()
    assert main(arguments) == 0
    said = capsys.readouterr().err
    for name in in_the_way:
        path = tmp_path / name
        assert f"{path} " in said or name == "sparse/0/frames.bin"  # all of sparse is made again
        assert not path.is_symlink()
        assert path.exists() or name == "database.db-wal"
    assert tables(tmp_path) == tables(finished)
    assert not (tmp_path / "not").exists()


@pytest.mark.usefixtures("no_report")
@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that cannot be read")
@pytest.mark.parametrize(
    "name",
    [
        "steps.json",
        "photos.json",
        "camera_models.json",
        f".{FEATURES}.sha256",
        FEATURES,
        MATCHES,
        "database.db",
        "sparse/0/images.bin",
        "pairs-exhaustive.txt",
    ],
)
def test_results_that_cannot_be_read_are_made_again(
    photos: Path, finished: Path, outputs: Path, name: str
) -> None:
    (outputs / name).unlink()
    (outputs / name).symlink_to("/proc/self/mem")  # opens, but cannot be read
    run(SfmOptions(photos, outputs, "sift"))
    assert tables(outputs) == tables(finished)
    assert not (outputs / name).is_symlink()


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file that cannot be read")
def test_maps_and_exports_that_cannot_be_read_are_made_again(
    photos: Path, finished: Path, tmp_path: Path
) -> None:
    options = MapOptions(finished, photos, tmp_path / "map", matcher="sift")
    build(options)
    before = (tmp_path / "map" / "model" / "images.bin").read_bytes()
    export_model(finished, photos, tmp_path / "exports", ["ply"])
    points = (tmp_path / "exports" / "points3D.ply").read_bytes()
    for name in ("map/model/images.bin", "exports/.exports.json.copy", "exports/exports.json"):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to("/proc/self/mem")  # opens, but cannot be read
        build(options)
        export_model(finished, photos, tmp_path / "exports", ["ply"])
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "map" / "model" / "images.bin").read_bytes() == before
    assert (tmp_path / "exports" / "points3D.ply").read_bytes() == points


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("note", ["kept", "gone"])
def test_what_a_kill_left_beside_a_database_does_not_reach_it(
    photos: Path, finished: Path, outputs: Path, tmp_path: Path, note: str
) -> None:
    copy = shutil.copyfile(outputs / "database.db", tmp_path / "database.db")
    with contextlib.closing(sqlite3.connect(copy)) as database:
        database.execute("DELETE FROM two_view_geometries")
        database.commit()  # to the log beside it, which goes into the database when it is closed
        shutil.copyfile(tmp_path / "database.db-wal", outputs / "database.db-wal")
    if note == "gone":  # as where the kill came while the database was being changed
        Workspace(outputs).forget("database.db")
    run(SfmOptions(photos, outputs, "sift"))
    assert tables(outputs) == tables(finished)
    with pycolmap.Database.open(outputs / "database.db") as found:
        assert len(found.read_two_view_geometries()[0]) > 0
    assert not (outputs / "database.db-wal").exists()


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", os.mkdir)])
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_what_is_no_file_of_a_database_makes_way(
    photos: Path, finished: Path, outputs: Path, make: Callable[[Path], None], suffix: str
) -> None:
    make(outputs / f"database.db{suffix}")
    run(SfmOptions(photos, outputs, "sift"))
    assert tables(outputs) == tables(finished)
    assert not (outputs / f"database.db{suffix}").exists()


def test_a_note_does_not_outlive_its_result(
    photos: Path, finished: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the new model and its note, the model is not taken for the old one."""

    def killed(self: Workspace, *arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "set_done", killed)
        with pytest.raises(KeyboardInterrupt):
            run(SfmOptions(photos, outputs, "sift", mapper="global"))
    assert tables(outputs) != tables(finished)
    run(SfmOptions(photos, outputs, "sift"))
    assert tables(outputs) == tables(finished)


def test_a_model_read_again_leads_to_the_same_result(
    photos: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the mapper and what makes its model better, a run ends with the same bits."""

    def killed(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    options = SfmOptions(photos, tmp_path / "out", "sift")
    with monkeypatch.context() as patch:
        patch.setattr(mapping, "choose_for_models", killed)
        with pytest.raises(KeyboardInterrupt):
            run(options)
    run(options)
    assert tables(tmp_path / "out") == tables(finished)


def test_photos_replaced_after_their_features_are_noticed(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Path(shutil.copytree(photos, tmp_path / "images"))
    match_features = matching.match_features

    def match(*arguments: Any) -> Any:
        shutil.copy(images / "0001.jpg", images / "0000.jpg")
        return match_features(*arguments)

    options = SfmOptions(images, tmp_path / "out", "sift")
    with monkeypatch.context() as patch:
        patch.setattr(matching, "match_features", match)
        with pytest.raises(PhotoChangedError, match=r"0000\.jpg has changed"):
            run(options)
    run(options)
    with open_h5(tmp_path / "out" / FEATURES) as file:
        first, second = (file.group(f"000{i}.jpg")["keypoints"] for i in range(2))
        np.testing.assert_array_equal(first, second)


@pytest.mark.usefixtures("no_report")
def test_an_upgrade_of_a_step_makes_its_results_again(
    photos: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        "MODEL": "sparse/0/points3D.bin",
        "DATABASE": "database.db",
        "MATCHES": MATCHES,
        "FEATURES": FEATURES,
    }

    def files() -> dict[str, int]:
        return {step: (outputs / name).stat().st_ino for step, name in made.items()}

    before = files()
    run(SfmOptions(photos, outputs, "sift"))
    assert files() == before
    for number, step in enumerate(made):
        monkeypatch.setattr(revisions, step, getattr(revisions, step) + 1)
        run(SfmOptions(photos, outputs, "sift"))
        after = files()
        assert after[step] != before[step]
        earlier = list(made)[number + 1 :]
        assert [after[name] for name in earlier] == [before[name] for name in earlier]
        before = after


def test_a_report_that_fails_does_not_lose_the_model(
    photos: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_space(path: Path, text: str) -> None:
        raise OutputError("no space is left")

    monkeypatch.setattr(reconstruction, "draw_model", lambda *arguments: 1 / 0)
    monkeypatch.setattr(reconstruction, "write_text", no_space)
    arguments = ["--image_dir", str(photos), "--outputs", str(outputs), "--matcher", "sift"]
    assert main(arguments) == 0
    assert "the report goes without model.png: division by zero" in caplog.text
    assert "no space is left" in caplog.text
    assert not (outputs / "report.html").exists()


@pytest.mark.parametrize("shape", [(1, 4320), (4320, 1), (3, 2)])
def test_pictures_of_photos_of_any_shape(shape: tuple[int, int]) -> None:
    small, scale = pictures.resize_to_height(np.zeros((*shape, 3), np.uint8), 100)
    assert max(small.shape) <= 600
    assert scale > 0
    assert pictures.jpeg_url(small)


def test_damaged_exports_are_made_again(
    photos: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = Path(shutil.copytree(photos, tmp_path / "photos"))
    folder = tmp_path / "out"
    formats = ["nerfstudio", "undistorted"]
    export_model(finished, images, folder, formats)
    damages = ((damage, is_old) for damage in (cut, emptied, flipped) for is_old in (False, True))
    for name, (damage, is_old) in itertools.product(
        ("images/0001.jpg", "undistorted/images/0001.jpg", "transforms.json"), damages
    ):
        path = folder / name
        content, status = path.read_bytes(), path.stat()
        path.unlink()  # it may be a link to the photo
        path.write_bytes(damage(content))
        if is_old:  # as a fault of the disk leaves it
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        caplog.clear()
        export_model(finished, images, folder, formats)
        assert path.read_bytes() == content
        (line,) = [message for message in caplog.messages if "again" in message]
        export = folder / Path(name).parts[0]
        assert line == f"{export} is missing or damaged: it is exported again"
    status = path.stat()
    path.unlink()  # for a link to something else, alike in size and time
    other = tmp_path / "other"
    other.write_bytes(flipped(content))
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.symlink_to(other)
    export_model(finished, images, folder, formats)
    assert path.read_bytes() == content
    caplog.clear()
    path.write_bytes(content)  # at another time: nothing is wrong with it
    made = (folder / "undistorted").stat().st_ino
    export_model(finished, images, folder, formats)
    assert not [message for message in caplog.messages if "again" in message]
    assert (folder / "undistorted").stat().st_ino == made


def test_what_stands_in_the_way_of_exports_goes(
    photos: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    formats = ["nerfstudio", "ply"]
    export_model(finished, photos, tmp_path, formats)
    content = {path: path.read_bytes() for path in files_below(tmp_path)}
    for name in ("sparse_pc.ply", "transforms.json", "points3D.ply", "images"):
        path = tmp_path / name
        if path.is_dir():
            shutil.rmtree(path)
            path.touch()
        else:
            path.unlink()
            path.mkdir()
        caplog.clear()
        export_model(finished, photos, tmp_path, formats)
        found = {path: path.read_bytes() for path in files_below(tmp_path)}
        assert content.keys() == found.keys()
        assert content[path] == found[path] if path in content else path.is_dir()
        (line,) = [message for message in caplog.messages if "again" in message]
        assert str(path) in line


@pytest.mark.parametrize("damage", [cut, flipped, zeroed, emptied, "folder", "link"])
def test_a_damaged_list_of_exports_is_made_again(
    photos: Path,
    finished: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes] | str,
) -> None:
    folder = tmp_path / "out"
    export_model(finished, photos, folder, ["nerfstudio"])
    path = folder / "exports.json"
    content = path.read_bytes()
    made = (folder / "images").stat().st_ino
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_bytes(damage(content))  # type: ignore[operator]
    caplog.set_level(logging.WARNING)
    export_model(finished, photos, folder, ["nerfstudio"])
    (line,) = [record.getMessage() for record in caplog.records if "again" in record.getMessage()]
    assert str(path) in line
    assert path.read_bytes() == content
    assert (folder / "images").stat().st_ino == made  # not replaced
    remove_exports(folder)
    assert not list(folder.iterdir())


def test_the_copy_of_a_note_is_looked_at_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "exports.json"
    write_memory(path, {"images": "a"}, twice=True)
    copy = copy_of(path)
    text = copy.read_text()
    for damage in (copy.unlink, lambda: copy.write_text(text[:-9]), copy.mkdir):
        if damage == copy.mkdir:
            copy.unlink()
        damage()
        assert read_memory(path, twice=True) == {"images": "a"}
        assert copy.read_text() == text
    (line,) = caplog.messages
    assert str(copy) in line


def test_a_deleted_list_of_exports_stays_deleted(
    photos: Path, finished: Path, tmp_path: Path
) -> None:
    """Who empties a folder, and not of hidden files, may put photos of his own there."""
    export_model(finished, photos, tmp_path, ["nerfstudio"])
    (tmp_path / "exports.json").unlink()
    with pytest.raises(InputError, match="was not written by an export"):
        export_model(finished, photos, tmp_path, ["nerfstudio"])


# ---------------------------------------------------------------------------------------------
# Maps


@pytest.fixture(scope="module")
def finished_map(finished: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("map")
    build(MapOptions(finished, photos, folder, "sift"))
    return folder


def map_content(folder: Path) -> dict[str, bytes]:
    parts = [path for path in files_below(folder) if path.suffix in (".bin", ".json")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in parts}


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("map.json", flipped),
        ("features.h5", zeroed),
        ("retrieval.h5", cut),
        ("model/images.bin", flipped),
        ("model/points3D.bin", emptied),
        ("model/frames.bin", None),
    ],
)
def test_damaged_maps_are_built_again(
    photos: Path,
    finished: Path,
    finished_map: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[bytes], bytes] | None,
) -> None:
    folder = Path(shutil.copytree(finished_map, tmp_path / "map"))
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage is None:
        path.mkdir()
    else:
        path.write_bytes(damage(content))
    with pytest.raises(InputError, match=r"again|missing"):
        Localizer(folder)
    caplog.set_level(logging.WARNING)
    with Workspace(folder).alone():  # as the command does
        build(MapOptions(finished, photos, folder, "sift"))
    assert map_content(folder) == map_content(finished_map)
    (line,) = [record.getMessage() for record in caplog.records if "again" in record.getMessage()]
    assert str(path) in line
    assert not (folder / "build").exists()


def test_maps_are_built_of_damaged_runs(
    photos: Path, outputs: Path, finished_map: Path, tmp_path: Path
) -> None:
    for name, damage in ((FEATURES, cut), (MATCHES, emptied)):
        (outputs / name).write_bytes(damage((outputs / name).read_bytes()))
    build(MapOptions(outputs, photos, tmp_path / "map", "sift"))
    assert (
        map_content(tmp_path / "map")["model/points3D.bin"]
        == (map_content(finished_map)["model/points3D.bin"])
    )


@pytest.mark.parametrize(
    ("old", "new"), [('"ratio"', '"ratios"'), ('"bytes"', '"bites"'), ("0.", "1.")]
)
def test_a_changed_description_of_a_map_is_refused(
    finished_map: Path, tmp_path: Path, old: str, new: str
) -> None:
    folder = Path(shutil.copytree(finished_map, tmp_path / "map"))
    about = (folder / "map.json").read_text()
    assert old in about
    (folder / "map.json").write_text(about.replace(old, new, 1))
    with pytest.raises(InputError, match=r"map\.json is damaged: build the map again"):
        read_settings(folder)


# ---------------------------------------------------------------------------------------------
# Notes


def test_a_changed_note_is_none(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    write_memory(path, {"ä": [1, 2.5], "b": None})
    assert read_memory(path) == {"ä": [1, 2.5], "b": None}
    path.write_text(path.read_text().replace("2.5", "2.6"))
    assert read_memory(path) == {}
    assert not path.exists()


def test_another_note_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exports, steps = tmp_path / "exports.json", tmp_path / "steps.json"
    write_memory(exports, {"images": "a"}, twice=True)
    write_memory(steps, {"sparse": "b"})
    shutil.copy(steps, exports)
    shutil.copy(copy_of(exports), steps)
    assert read_memory(steps) == {}
    assert read_memory(exports, twice=True) == {"images": "a"}
    assert [str(exports) in line or str(steps) in line for line in caplog.messages] == [True, True]


def test_notes_of_earlier_versions_are_read(tmp_path: Path) -> None:
    entries = {"images": "a"}
    text = json.dumps({"checksum": fingerprint(entries), "entries": entries})
    (tmp_path / "exports.json").write_text(text)
    assert read_memory(tmp_path / "exports.json", twice=True) == entries


def test_opening_a_database_does_not_change_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    pycolmap.Database.open(path).close()
    data = path.read_bytes()
    before = content_hash(path)
    pycolmap.Database.open(path).close()
    assert path.read_bytes() != data
    assert content_hash(path) == before
    path.write_bytes(flipped(data))
    assert content_hash(path) != before


def test_what_kills_leave_is_deleted_by_the_next_run(tmp_path: Path) -> None:
    left = [".steps.json.0123abcd.tmp", ".database.db.0123abcd.tmp-wal", "map/.x.0123abcd.tmp"]
    kept = [".my.tmp", "a.0123abcd.tmp"]
    (tmp_path / "map").mkdir()
    for name in left + kept:
        (tmp_path / name).touch()
    (tmp_path / ".sparse.0123abcd.tmp" / "0").mkdir(parents=True)
    with exclusive(tmp_path, "1/2"):
        assert (tmp_path / left[0]).exists()
    with exclusive(tmp_path):
        assert not any((tmp_path / name).exists() for name in (*left, ".sparse.0123abcd.tmp"))
        assert all((tmp_path / name).exists() for name in kept)


def test_what_cannot_be_deleted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the files of a folder that is another user's; its name can be taken all the same."""
    (tmp_path / "sparse" / "0").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, **options: None)
        for action in (
            lambda: replacing_folder(tmp_path / "sparse"),
            lambda: exclusive(tmp_path),  # by each run that follows
        ):
            caplog.clear()
            with action():
                pass
            (left,) = tmp_path.glob(".sparse.*.tmp")
            (line,) = caplog.messages
            assert line == f"{left} is of no use and cannot be deleted: is it another user's?"
    with exclusive(tmp_path):
        assert not left.exists()


def test_scratch_folders_of_killed_runs_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    with scratch_folder() as at_work:
        left = Path(shutil.copytree(at_work, tmp_path / "sfm-matchers-left"))
        other = tmp_path / "sfm-matchers-other"  # no lock of ours in it
        other.mkdir()
        for folder in (at_work, left, other):
            os.utime(folder, (0, 0))
        scratch._remove_left_behind.cache_clear()
        with scratch_folder():
            assert at_work.exists()
            assert other.exists()
            assert not left.exists()
    assert list(tmp_path.iterdir()) == [other]


def test_what_killed_exports_leave_is_deleted(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    left = [temporary_beside(folder / name) for name in (PREPARED, "undistorted")]
    for path in left:
        (path / "staged").mkdir(parents=True)
    assert export.main(["model", str(finished), "--output", str(folder), "--formats", "ply"]) == 0
    assert not any(path.exists() for path in left)


# ---------------------------------------------------------------------------------------------
# HDF5


def staged(path: Path) -> StagedFile:
    file = StagedFile(path)
    for number in range(3):
        entry = {"keypoints": np.full((300, 2), number, np.float32), "scores": np.ones(300)}
        file.add({f"{number}.jpg": entry}, {f"{number}.jpg": str(number)})
    return file


def damage_keypoints(path: Path, value: float) -> None:
    """Change a number in the middle of the keypoints that have it."""
    data = path.read_bytes()
    at = data.index(np.full(100, value, np.float32).tobytes())
    path.write_bytes(data[: at + 40] + b"\xff" + data[at + 41 :])


def test_damaged_entries_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = staged(tmp_path / "f.h5").commit()
    damage_keypoints(path, 1)
    file = StagedFile(path)
    assert [f"{n}.jpg" in file for n in range(3)] == [True, False, True]
    assert "1 of 3 entries are damaged and made again" in caplog.text
    assert list_groups(path) == ["0.jpg", "2.jpg"]
    caplog.clear()
    StagedFile(path)
    assert not caplog.text


def test_a_damaged_part_does_not_reach_the_file(tmp_path: Path) -> None:
    staged(tmp_path / "f.h5")
    damage_keypoints(tmp_path / "f.h5.parts" / "00000001.h5", 1)
    file = StagedFile(tmp_path / "f.h5")
    assert "1.jpg" not in file
    assert list_groups(file.commit()) == ["0.jpg", "2.jpg"]


def test_only_own_files_are_made_again(tmp_path: Path) -> None:
    own = staged(tmp_path / "own.h5").commit()
    own.write_bytes(cut(own.read_bytes()))
    assert "0.jpg" not in StagedFile(own)
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["0.jpg/keypoints"] = np.ones((3, 2))
    assert StagedFile(foreign).is_current("0.jpg", "any")
    foreign.write_bytes(cut(foreign.read_bytes()))
    with pytest.raises(InputError, match="not readable"):
        StagedFile(foreign)
    assert foreign.exists()


def test_space_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = staged(tmp_path / "f.h5")
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(OutputError, match="no space is left"):
        check_space(tmp_path / "new" / "f.h5", free + 1)
    monkeypatch.setattr(space, "MIN_SPACE", free + (1 << 30))
    with pytest.raises(OutputError, match="no space is left"):
        file.commit()
    monkeypatch.undo()
    assert len(list_groups(file.commit())) == 3


@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="no count of files here")
def test_a_disk_that_takes_no_more_files_is_full(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_model(finished)

    def write(folder: Path) -> None:
        raise ValueError(f'Check failed: (file).is_open() Could not open "{folder}/cameras.bin"')

    with monkeypatch.context() as patch:
        patch.setattr(pycolmap.Reconstruction, "write", lambda self, folder: write(folder))
        with pytest.raises(ValueError, match="Check failed"):
            write_model(model, tmp_path)
        blocks = dict.fromkeys(("f_blocks", "f_bfree", "f_bavail", "f_frsize"), 1 << 20)
        status = SimpleNamespace(f_files=1000, f_favail=0, **blocks)
        patch.setattr(os, "statvfs", lambda path: status)
        with pytest.raises(OutputError, match="no space is left"):
            write_model(model, tmp_path)
        status.f_files = 0  # as of file systems that have no table of files
        with pytest.raises(ValueError, match="Check failed"):
            write_model(model, tmp_path)
    write_model(model, tmp_path)


# ---------------------------------------------------------------------------------------------
# Models


@pytest.mark.parametrize("target", ["model", "not/there"])
def test_a_model_is_not_written_to_a_link_that_leads_nowhere(
    finished: Path, tmp_path: Path, target: str
) -> None:
    folder = tmp_path / "model"
    folder.symlink_to(tmp_path / target)
    with pytest.raises(OutputError, match=f"{folder} is a link that leads nowhere: move it away"):
        write_model(read_model(finished), folder)
    assert folder.is_symlink()


def test_a_model_that_is_cut_off_on_writing_takes_no_place(finished: Path, tmp_path: Path) -> None:
    model = read_model(finished)

    class FullDisk:
        """pycolmap says nothing there."""

        def write(self, folder: Path) -> None:
            model.write(folder)
            (folder / "points3D.bin").write_bytes(b"")

        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

    write_model(model, tmp_path)
    before = (tmp_path / "points3D.bin").read_bytes()
    with pytest.raises(OutputError, match="cut off"):
        write_model(FullDisk(), tmp_path)  # type: ignore[arg-type]
    assert (tmp_path / "points3D.bin").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{name}.bin" for name in ("cameras", "frames", "images", "points3D", "rigs")
    ]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_damaged_models_are_refused_or_usable(finished: Path, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    folder = tmp_path / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(finished / "sparse" / "0", folder)
    path = rng.choice(sorted(folder.iterdir()))
    data = bytearray(path.read_bytes())
    at = rng.randrange(rng.choice((8, len(data))))
    if rng.random() < 0.3:
        del data[at:]
    else:
        data[at : at + 1] = bytes([rng.randrange(256)])
    path.write_bytes(data)
    with contextlib.suppress(InputError):
        model = read_model(folder)
        model_in_3d.reprojection_errors(model)
        assert all(image.camera is not None for image in model.images.values())


def test_two_images_of_one_name_are_named(finished: Path, tmp_path: Path) -> None:
    for write in ("write_binary", "write_text"):
        model = read_model(finished)
        for image in model.images.values():
            image.name = "same.jpg"
        getattr(model, write)(tmp_path)
        with pytest.raises(InputError, match=r"two images of the name 'same\.jpg'"):
            read_model(tmp_path)
        for path in tmp_path.iterdir():
            path.unlink()
