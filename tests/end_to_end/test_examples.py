"""Every script in `examples/` runs as its first lines say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


# ---------------------------------------------------------------------------------------------
# The notebook

NOTEBOOK = EXAMPLES / "photos_to_model.ipynb"


def notebook_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_is_executed_and_small() -> None:
    assert NOTEBOOK.stat().st_size < 200_000
    cells = notebook_cells()
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    assert sum("text/html" in output.get("data", {}) for output in outputs) == 2
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)


def test_the_notebook_runs(tmp_path: Path) -> None:
    """On fewer photos of a coarser place."""
    code = "\n".join("".join(cell["source"]) for cell in notebook_cells())
    for given, fewer in (
        ("make_scene(7)", "make_scene(7, texture_size=256)"),
        ("scene, 10,", "scene, 8,"),
        ("scene, 3,", "scene, 2,"),
    ):
        assert given in code
        code = code.replace(given, fewer)
    code += "\nassert result.verdict.level == located.verdict.level == 'good'"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "later/images/0001.jpg localized" in result.stdout
