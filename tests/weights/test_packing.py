"""From what a training run exports to a file of weights to ship."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from material import shared_path

from pipelines.pack_weights import main
from sfm_matchers.networks.jamma import JamMa
from sfm_matchers.weights import WeightsMetadata, load_network, load_state_dict_file
from sfm_matchers.weights.safetensors_file import save_half_precision

METADATA = WeightsMetadata(
    "jamma",
    "two photographs",
    7,
    {"hard_loss": 0.5, "hard_recall": 0.81234},
    licence="",
    config={"coarse_threshold": 0.6},
)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_half_precision(JamMa().state_dict(), path, METADATA.to_header())
    return path


@pytest.mark.parametrize("eight_bits", [False, True])
def test_the_file_says_what_the_run_said_and_holds_its_weights(
    exported: Path, tmp_path: Path, eight_bits: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "jamma.safetensors"
    arguments = ["--weights", str(exported), "--output", str(path), "--note", "young"]
    assert main([*arguments, *(["--eight_bits"] if eight_bits else [])]) == 0
    assert "jamma.safetensors: " in capsys.readouterr().out
    assert WeightsMetadata.from_file(path) == replace(
        METADATA, metrics={"hard_recall": 0.812}, licence="Apache-2.0", note="young"
    )
    assert (path.stat().st_size < 0.6 * exported.stat().st_size) == eight_bits
    before, after = (load_network("jamma", str(file)) for file in (exported, path))
    assert after.config.coarse_threshold == 0.6
    for name, tensor in before.state_dict().items():
        tolerance = float(tensor.abs().max()) / 200 if eight_bits else 0
        torch.testing.assert_close(after.state_dict()[name], tensor, atol=tolerance, rtol=0)


def test_what_is_no_export_is_named(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "x.safetensors")]
    assert main(["--weights", str(tmp_path / "none.safetensors"), *output]) == 2
    save_half_precision({"w": torch.ones(2)}, exported, {})
    assert main(["--weights", str(exported), *output]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert ["no file" in errors[0], "does not say what it is" in errors[1]] == [True, True]
    assert not (tmp_path / "x.safetensors").exists()


def test_of_several_files_it_is_the_mean(exported: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other, path = tmp_path / "other.safetensors", tmp_path / "jamma.safetensors"
    save_half_precision(JamMa().state_dict(), other, METADATA.to_header())
    arguments = ["--weights", str(exported), str(other), "--output", str(path)]
    assert main([*arguments, "--trained_on", "four photographs"]) == 0
    found = WeightsMetadata.from_file(path)
    assert found is not None
    assert (found.trained_on, found.metrics, found.config) == (
        "four photographs",
        {},
        METADATA.config,
    )
    first, second, mean = (
        load_network("jamma", str(file)).state_dict() for file in (exported, other, path)
    )
    for name, tensor in mean.items():
        if tensor.is_floating_point():
            expected = (first[name] + second[name]) / 2
            torch.testing.assert_close(tensor, expected, atol=1e-3, rtol=1e-3)


def test_files_of_different_networks_have_no_mean(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, path = tmp_path / "other.safetensors", tmp_path / "x.safetensors"
    save_half_precision({"w": torch.ones(2)}, other, METADATA.to_header())
    assert main(["--weights", str(exported), str(other), "--output", str(path)]) == 2
    assert "not of one network" in capsys.readouterr().err
    assert not path.exists()


def test_others_weights_keep_their_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    official = shared_path("weights/aliked-n16rot.pth")
    monkeypatch.setenv("SFM_MATCHERS_CACHE", str(tmp_path))
    (tmp_path / "aliked-n16rot.pth").write_bytes(official.read_bytes())
    path = tmp_path / "half.safetensors"
    assert main(["--official", "aliked-n16rot", "--output", str(path)]) == 0
    metadata = WeightsMetadata.from_file(path)
    assert metadata is not None
    assert (metadata.network, metadata.licence) == ("aliked-n16rot", "BSD-3-Clause")
    before, after = (load_state_dict_file(file) for file in (official, path))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name].to(tensor), tensor, rtol=1e-3, atol=1e-6)
    assert main(["--official", "nothing", "--output", str(path)]) == 2
    assert "no official weights of 'nothing'" in capsys.readouterr().err
