"""hloc's steps as functions, and the command line made from them."""

from __future__ import annotations

import argparse
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pycolmap
import pytest
from rendered_room import photograph_room

from pipelines.hloc import build_parser, main
from pipelines.hloc.command import STEPS, function_of
from pipelines.hloc.signatures import add_options, keywords_of
from sfm_matchers.errors import InputError
from sfm_matchers.files.hdf5 import list_groups
from sfm_matchers.hloc.steps.executors import ExecutorOptions
from sfm_matchers.hloc.steps.matching import extract_features, match_features
from sfm_matchers.hloc.steps.models import reconstruction
from sfm_matchers.hloc.steps.pairs import pairs_from_exhaustive

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the folder ``photos``: a room, seen from six places."""
    folder = tmp_path_factory.mktemp("steps")
    photograph_room(folder, 6)
    (folder / "images").rename(folder / "photos")
    return folder


def test_the_example_of_the_help_works(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    example = build_parser([]).format_help().partition("Without a detector")[0]
    commands = re.findall(r"^ +hloc (.*)$", example.replace("\\\n", ""), flags=re.M)
    assert len(commands) == 4
    for command in commands:
        assert main(shlex.split(command)) == 0
    assert pycolmap.Reconstruction(photos / "outputs" / "sfm").num_reg_images() == 6


def test_steps_are_functions(photos: Path, tmp_path: Path) -> None:
    """Paths may be strings, and no step prints."""
    images = photos / "photos"
    features = extract_features(image_dir=str(images), export_dir=tmp_path, conf="sift-n2048")
    assert features == tmp_path / "feats-sift-n2048.h5"
    pairs = pairs_from_exhaustive(output=tmp_path / "pairs.txt", features=str(features))
    assert len(pairs) == 15
    files = match_features(pairs=tmp_path / "pairs.txt", features=features, export_dir=tmp_path)
    assert files == (tmp_path / "feats-sift-n2048_matches-sift-NN-ratio_pairs.h5",)
    model = reconstruction(
        sfm_dir=str(tmp_path / "sfm"),
        image_dir=images,
        pairs=tmp_path / "pairs.txt",
        features=features,
        matches=files[0],
        image_options={"camera_model": "PINHOLE"},
        mapper_options={"init_min_num_inliers": 30, "filter_max_reproj_error": 3},
    )
    assert model.num_reg_images() == 6
    assert {camera.model.name for camera in model.cameras.values()} == {"PINHOLE"}


def test_folders_in_the_place_of_files_make_way(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run() -> bytes:
        images, pairs, model = photos / "photos", tmp_path / "pairs.txt", tmp_path / "sfm"
        features = extract_features(image_dir=images, export_dir=tmp_path, conf="sift-n2048")
        pairs_from_exhaustive(output=pairs, features=features)
        (matches,) = match_features(pairs=pairs, features=features, export_dir=tmp_path)
        reconstruction(
            sfm_dir=model, image_dir=images, pairs=pairs, features=features, matches=matches
        )
        return b"".join((model / f"{name}.bin").read_bytes() for name in ("images", "points3D"))

    before = run()
    in_the_way = [
        *(path for path in tmp_path.rglob("*.h5*") if path.is_file()),
        tmp_path / "photos.json",
        tmp_path / "sfm" / "database.db",
        tmp_path / "sfm" / "frames.bin",
        tmp_path / "sfm" / "models" / "0" / "images.bin",
    ]
    assert len(in_the_way) == 8
    for path in in_the_way:
        path.unlink()
        path.mkdir()
    caplog.clear()
    assert run() == before
    told = [message for message in caplog.messages if "was not a file" in message]
    assert len(told) == 7  # the folder of models is made each time


def test_a_shard_returns_no_file(photos: Path, tmp_path: Path) -> None:
    features = extract_features(image_dir=photos / "photos", export_dir=tmp_path, conf="sift-n2048")
    pairs = tmp_path / "pairs.txt"
    pairs_from_exhaustive(output=pairs, features=features)

    def match(**options: object) -> tuple[Path, ...]:
        executor = ExecutorOptions(**options)  # type: ignore[arg-type]
        return match_features(
            pairs=pairs, features=features, export_dir=tmp_path, executor=executor
        )

    assert match(shard="1/2") == match(shard="2/2") == ()
    (path,) = match(merge=True)
    assert len(list_groups(path)) == 15


def test_the_table_of_steps_says_what_the_functions_say() -> None:
    for name, step in STEPS.items():
        assert (inspect.getdoc(function_of(name)) or "").partition("\n")[0] == step.summary


def test_every_option_has_a_help() -> None:
    (steps,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in steps.choices.items():
        silent = [action.dest for action in parser._actions if not action.help]
        assert silent == [], name


def _function(
    *,
    image_dir: str | Path,
    mode: Literal["A", "B"] = "A",
    count: int = 5,
    score: float | None = None,
    names: Sequence[str] | None = None,
    options: Mapping[str, str] = {},
    is_fast: bool = False,
    executor: ExecutorOptions | None = None,
) -> pycolmap.Reconstruction:
    """Do something.

    Args:
        image_dir: folder, 100% of it,
            which takes two lines.
        count: of things.
    """
    raise NotImplementedError


def test_options_are_the_keywords_of_the_function() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, _function, {"image_dir": "images"})
    helps = parser.format_help()
    assert "folder, 100% of it, which takes two lines" in " ".join(helps.split())
    assert "of things (default: 5)" in helps

    given = vars(parser.parse_args(["--images", "a"]))
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(_function).parameters.items()
    }
    expected = {**defaults, "image_dir": "a", "executor": ExecutorOptions()}
    assert keywords_of(_function, given) == expected

    words = "--image_dir a --mode B --count 2 --score 1 --names x y --options k=v=w --is_fast"
    given = vars(parser.parse_args([*words.split(), "--workers", "2"]))
    assert keywords_of(_function, given) == {
        "image_dir": "a",
        "mode": "B",
        "count": 2,
        "score": 1.0,
        "names": ["x", "y"],
        "options": {"k": "v=w"},
        "is_fast": True,
        "executor": ExecutorOptions(workers=2),
    }
    given["options"] = ["k"]
    with pytest.raises(InputError, match="expected key=value, found 'k'"):
        keywords_of(_function, given)


def test_python_m_runs_it() -> None:
    command = [sys.executable, "-m", "pipelines.hloc", "match_dense", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--features_ref" in run.stdout
