"""What the package imports as soon as it is used comes with it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Names of modules where they differ from those of the distributions.
MODULES = {"opencv-python-headless": "cv2", "pillow": "PIL", "PyYAML": "yaml"}
# Imported only where what they need is installed, or by what needs it.
OF_EXTRAS = {
    "sfm_matchers/hloc/detector_free.py": {"hloc"},
    "sfm_matchers/hloc/extractors/sfm_matchers_features.py": {"hloc"},
    "sfm_matchers/hloc/matchers/mambaglue.py": {"hloc"},
    "sfm_matchers/localization/service.py": {"fastapi", "pydantic", "starlette"},
    "sfm_matchers/networks/selective_scan/numba_kernels.py": {"llvmlite", "numba"},
    "sfm_matchers/networks/selective_scan/triton_kernels.py": {"triton"},
    "sfm_matchers/onnx/selective_scan.py": {"onnxscript"},
}


def imported_at_once(path: Path) -> set[str]:
    """The packages that a module imports at its top."""
    found = set()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            found.add(statement.module)
    return {name.partition(".")[0] for name in found}


def test_no_module_needs_more_than_is_installed_with_the_package() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {item.partition(">")[0] for item in project["dependencies"]}
    there = {MODULES.get(name, name) for name in names} | set(sys.stdlib_module_names)
    there |= {"sfm_matchers", "pipelines"}
    more = {}
    for path in (*ROOT.glob("sfm_matchers/**/*.py"), *ROOT.glob("pipelines/**/*.py")):
        if lacking := imported_at_once(path) - there:
            more[path.relative_to(ROOT).as_posix()] = lacking
    assert more == OF_EXTRAS
