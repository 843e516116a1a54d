"""The benchmark of GPUs, rehearsed on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu


@pytest.mark.slow
def test_all_of_it_runs_at_tiny_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "tests", lambda run: iter(["tests"]))
    monkeypatch.setattr(gpu, "PRECISIONS", ("float32",))
    output = tmp_path / "gpu.md"
    names = ["jamma", "sift+mambaglue"]
    assert gpu.main(["--tiny", "--output", str(output), "--matchers", *names]) == 0
    text = output.read_text(encoding="utf-8")
    assert text.count("\n## ") == 6
    assert "failed" not in text
    assert "no time" not in text
    for name in names:
        assert f"| {name} | 128 | float32 |" in text
    assert "| jamma | least_squares_matching |" in text
    assert "| tiny |" in text


def test_what_finds_no_time_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "tests", lambda run: iter(["tests"]))
    output = tmp_path / "gpu.md"
    assert gpu.main(["--tiny", "--output", str(output), "--seconds", "0"]) == 0
    assert "| jamma | 96 | float32 | no time |" in output.read_text(encoding="utf-8")


def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 2
    assert "--tiny" in capsys.readouterr().err


def test_a_batch_that_does_not_fit_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        def match_batch(self, pairs: list[object]) -> None:
            if len(pairs) > 2:
                raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "load", lambda *_: Small())
    monkeypatch.setattr(gpu, "prepared", lambda *_: ())
    run = gpu.Run("cpu", (96,), (1, 2, 4, 8), True, float("inf"))
    assert gpu._speed(run, "jamma", 96, "float32").split(" | ")[3] in ("1", "2")
