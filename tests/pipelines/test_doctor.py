"""The doctor: what it reports, and that a missing part does not stop it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import doctor
from sfm_matchers.confs import SparseConf, conf_names, load_conf
from sfm_matchers.matchers.registry import SPARSE_MATCHERS
from sfm_matchers.networks.table import NETWORKS
from sfm_matchers.runs import capabilities
from sfm_matchers.weights import (
    WeightsMetadata,
    cache_dir,
    download,
    registry,
    save_bundled,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's cache and the package's bundled weights out; forbid any download."""

    def no_download(*arguments: object, **options: object) -> None:
        raise AssertionError("the doctor must not download")

    monkeypatch.setenv("SFM_MATCHERS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SFM_MATCHERS_OFFLINE", raising=False)
    monkeypatch.delenv("SFM_MATCHERS_SCAN", raising=False)
    monkeypatch.setattr(download, "download", no_download)
    for module in (registry, download):
        monkeypatch.setattr(module, "BUNDLED_DIR", tmp_path / "bundled")


def by_name(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def test_the_report_names_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--all"]) == 0
    text = capsys.readouterr().out
    for line in (
        f"torch         {torch.__version__}",
        "jamma/official                missing",
        "https://github.com/leoluxxx/JamMa/releases/download/v0.1/jamma.ckpt",
        str(cache_dir() / "jamma.ckpt"),
        "Magic Leap, non-commercial: academic and non-profit research only; no redistribution",
        "pre-publication version",
        "sift                    usable",
        "jamma                   needs a download of jamma/official",
    ):
        assert line in text
    assert "cannot be examined" not in text


def test_it_is_short_unless_all_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 20
    assert f"torch {torch.__version__}" in lines[0]
    (usable,) = (line for line in lines if line.startswith("usable"))
    assert "sift" in usable
    assert "not yet       jamma: needs a download of jamma/official" in lines
    assert lines[-1].endswith("--all")


@pytest.mark.slow
def test_matchers_are_tried(capsys: pytest.CaptureFixture[str]) -> None:
    """Here sift alone is usable: the bundled weights are kept out."""
    assert doctor.main(["--try"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "% right" in line)
    name, count, _, share, *_ = line.split()
    assert name == "sift"
    assert int(count) > 100
    assert int(share) > 80


def test_the_json_report_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["devices"]["cpu_threads"] == torch.get_num_threads()
    assert report["scan_backends"]["devices"]["cpu"]["backend"] in ("numba", "torch")
    assert report["scan_libraries"].keys() >= {"numba", "triton", "mamba_ssm"}
    assert by_name(report["weights"], "disk/official")["licence"] == "Apache-2.0"
    assert by_name(report["matchers"], "sift") == {"name": "sift", "weights": None, "needs": []}


def test_weights_in_the_cache_make_a_matcher_usable() -> None:
    cache_dir().mkdir()
    (cache_dir() / "jamma.ckpt").write_bytes(b"")
    report = capabilities.examine()
    assert by_name(report["weights"], "jamma/official")["present"]
    assert by_name(report["matchers"], "jamma") == {
        "name": "jamma",
        "weights": "official",
        "needs": [],
    }
    assert "jamma                   usable with --weights official" in doctor.describe(report)


def test_bundled_weights_come_first(tmp_path: Path) -> None:
    cache_dir().mkdir()
    (cache_dir() / "jamma.ckpt").write_bytes(b"")
    metadata = WeightsMetadata("jamma", "rendered scenes", 10, {"recall": 0.25})
    save_bundled({"w": torch.ones(2, 2)}, tmp_path / "bundled" / "jamma.safetensors", metadata)
    report = capabilities.examine()
    assert by_name(report["matchers"], "jamma")["weights"] == "bundled"
    assert by_name(report["weights"], "jamma/bundled")["note"] == "recall 0.25"


def test_offline_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_MATCHERS_OFFLINE", "1")
    needs = by_name(capabilities.matchers(), "jamma")["needs"]
    assert needs == ["a download of jamma/official, which SFM_MATCHERS_OFFLINE forbids"]


def test_a_matcher_without_published_weights_says_so() -> None:
    source, needs = capabilities._choose("mambaglue-doghardnet", capabilities.weights())
    assert source is None
    assert "mambaglue-doghardnet" in needs[0]
    assert "--weights PATH" in needs[0]


def test_a_forced_scan_backend_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFM_MATCHERS_SCAN", "reference")
    assert "SFM_MATCHERS_SCAN=reference overrides this" in doctor.describe(capabilities.examine())


def test_a_part_that_fails_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("libcuda.so:\n cannot open shared object file")

    monkeypatch.setattr(capabilities, "devices", broken)
    report = capabilities.examine()
    reason = "OSError: libcuda.so: cannot open shared object file"
    assert report["devices"] == {"error": reason}
    text = doctor.describe(report)
    assert f"cannot be examined: {reason}" in text
    assert "sift                    usable" in text
    json.dumps(report)


def test_a_damaged_bundled_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "bundled").mkdir()
    (tmp_path / "bundled" / "jamma.safetensors").write_bytes(b"version https://git-lfs")
    assert "jamma.safetensors" in capabilities.examine()["weights"]["error"]


def test_the_doctor_works_without_torch_pycolmap_and_yaml() -> None:
    program = (
        "import sys; sys.modules.update(torch=None, pycolmap=None, yaml=None);"
        "from pipelines import doctor; sys.exit(doctor.main([]))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr
    assert "sfm-matchers" in finished.stdout
    assert "cannot be examined: ModuleNotFoundError: import of torch halted" in finished.stdout


def test_the_extras_are_those_of_the_package() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(capabilities.EXTRAS) == set(project["optional-dependencies"]) - {"all", "dev"}


def test_every_conf_uses_weights_that_the_registry_knows() -> None:
    subjects = {entry.subject for entry in registry.OFFICIAL}
    for name in conf_names():
        conf = load_conf(name)
        if isinstance(conf, SparseConf):
            front_end = conf.features.name
            assert front_end in subjects or not registry.needs_weights(front_end)
        assert conf.matcher in (*NETWORKS, *SPARSE_MATCHERS)
