"""Every script in `examples/` runs as its first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_example(name: str, *arguments: object) -> str:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=EXAMPLES.parent,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    run_example("render_scene.py", folder, "--count", 6, "--texture-size", 256)
    return folder


def test_render_scene_writes_photos_and_truth(scene: Path) -> None:
    assert len(list((scene / "images").glob("*.jpg"))) == 6
    assert (scene / "truth" / "images.txt").is_file()


def test_match_two_photos_draws_a_picture(scene: Path, tmp_path: Path) -> None:
    photos = [scene / "images" / f"000{index}.jpg" for index in (2, 3)]
    output = run_example("match_two_photos.py", *photos, tmp_path / "matches.png")
    assert int(output.split()[0]) > 50
    assert cv2.imread(str(tmp_path / "matches.png")).shape[1] > 2 * 640


def test_photos_to_model_prints_poses(scene: Path, tmp_path: Path) -> None:
    output = run_example("photos_to_model.py", scene / "images", tmp_path / "out")
    assert "0003.jpg" in output
    assert (tmp_path / "out" / "sparse" / "0" / "points3D.bin").is_file()
