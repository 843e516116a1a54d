"""The pipelines with several processes, or as the shards of a batch system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pycolmap
import pytest
from matching_work import content
from rendered_room import photograph_room

from pipelines import hloc, sfm
from sfm_matchers.errors import InputError
from sfm_matchers.files.locks import exclusive
from sfm_matchers.matching.executors import make_executor

pytestmark = pytest.mark.slow

MATCHES = "matches-sift-NN-ratio_pairs-exhaustive.h5"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    return photograph_room(folder, 5, texture_size=256) / "images"


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a run of one process."""
    outputs = tmp_path_factory.mktemp("finished")
    assert run(photos, outputs) == 0
    return outputs


def run(photos: Path, outputs: Path, *options: str) -> int:
    arguments = ["--image_dir", str(photos), "--outputs", str(outputs), "--matcher", "sift"]
    return sfm.main([*arguments, *options])


def test_sift_does_without_torch(photos: Path, tmp_path: Path) -> None:
    """Its import takes a tenth of the run on eight small photos; longer tracks need it."""
    code = "import sys; from pipelines import sfm; sfm.main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", code, "--image_dir", photos, "--outputs", tmp_path]
    command += ["--no_longer_tracks"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "sparse/0").exists()
    assert "pycolmap" in done.stdout.split()
    assert "torch" not in done.stdout.split()


def test_two_processes_give_the_files_of_one(photos: Path, finished: Path, tmp_path: Path) -> None:
    assert run(photos, tmp_path, "--workers", "2") == 0
    assert content(tmp_path / MATCHES) == content(finished / MATCHES)


def test_shards_are_merged_to_the_model_of_one_run(
    photos: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(photos, tmp_path, "--shard", "2/2") == 0
    assert "shard 2/2 is done" in capsys.readouterr().out
    assert run(photos, tmp_path, "--merge") == 2
    assert "not all shards are done" in capsys.readouterr().err
    assert run(photos, tmp_path, "--shard", "1/2") == 0
    assert run(photos, tmp_path, "--merge") == 0
    assert content(tmp_path / MATCHES) == content(finished / MATCHES)
    models = [pycolmap.Reconstruction(path / "sparse/0") for path in (tmp_path, finished)]
    assert models[0].num_points3D() == models[1].num_points3D()


def test_hloc_steps_have_shards_too(photos: Path, finished: Path, tmp_path: Path) -> None:
    pairs = finished / "pairs-exhaustive.txt"
    arguments = ["match_features", "--conf", "sift", "--pairs", str(pairs)]
    arguments += ["--features", str(finished / "feats-sift.h5")]
    arguments += ["--matches", str(tmp_path / "matches.h5")]
    assert hloc.main([*arguments, "--shard", "1/2"]) == 0
    assert not (tmp_path / "matches.h5").exists()
    assert hloc.main([*arguments, "--shard", "2/2"]) == 0
    assert hloc.main([*arguments, "--merge"]) == 0
    assert content(tmp_path / "matches.h5") == content(finished / MATCHES)


def test_a_shard_runs_once_at_a_time_and_never_beside_a_whole_run(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with exclusive(tmp_path, "1/2"):
        assert run(photos, tmp_path, "--shard", "1/2") == 2
        assert run(photos, tmp_path) == 2
        with exclusive(tmp_path, "2/2"):
            pass
    assert capsys.readouterr().err.count("another run is working in") == 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"shard": "3"}, "such as 2/8"),
        ({"shard": "3/2"}, "no shard 3 of 2"),
        ({"shard": "1/2", "workers": 2}, "stand alone"),
        ({"shard": "1/2", "merge": True}, "stand alone"),
        ({"workers": 0}, "1 or more"),
    ],
)
def test_wrong_options_are_explained(options: dict, reason: str) -> None:
    defaults = {"workers": None, "ray": None, "device": "cpu"}
    with pytest.raises(InputError, match=reason):
        make_executor(**defaults | options)
