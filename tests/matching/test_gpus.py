"""Which GPU a process has. No GPU is needed: torch is told how many there are."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from matching_work import MeanColor, Work

from pipelines.options import device_name
from sfm_matchers.errors import InputError
from sfm_matchers.machine import memory
from sfm_matchers.matchers.protocols import EncodedImage
from sfm_matchers.matchers.registry import default_device
from sfm_matchers.matching import Processes
from sfm_matchers.matching.executors import _visible_gpus, make_executor


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_can_be_chosen_by_its_number() -> None:
    assert [default_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda", "cuda", "cuda:1", "cpu",
    ]  # fmt: skip
    for name in ("cuda:2", "cuda:", "cuda:x", "gpu"):
        with pytest.raises(InputError, match=f"{name!r} is not available here, only: cuda, .*a:1$"):
            default_device(name)


def test_devices_on_the_command_line() -> None:
    assert [device_name(text) for text in ("auto", "CUDA:1", "mps")] == ["auto", "cuda:1", "mps"]
    with pytest.raises(argparse.ArgumentTypeError, match="none of auto, cpu, mps, cuda, cuda:N"):
        device_name("gpu")


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_those_that_the_first_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8932f937")
    assert _visible_gpus() == ["3", "GPU-8932f937"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _visible_gpus() == []


def test_processes_divide_the_gpus_unless_one_is_named() -> None:
    assert make_executor(3, None, "cuda") == Processes(3, uses_gpu=True)
    assert make_executor(3, None, "cuda:1") == make_executor(3, None, "cpu") == Processes(3)


class SeesGpu(MeanColor):
    """Notes which GPU its process sees."""

    def encode(self, image: np.ndarray) -> EncodedImage:
        seen = os.environ["CUDA_VISIBLE_DEVICES"]
        Path(os.environ["NOTES"], f"{seen} {os.getpid()}").touch()
        return super().encode(image)


@pytest.mark.slow
@pytest.mark.usefixtures("two_gpus")
def test_each_process_sees_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("photos", "notes"):
        (tmp_path / name).mkdir()
    for index in range(5):
        pixels = np.full((24, 32, 3), 20 * index, np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{index}.png"), pixels)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    names = [f"{index}.png" for index in range(5)]
    work = Work(tmp_path / "photos", tmp_path / "out" / "correspondences.h5", names)
    assert len(work.run(Processes(2, uses_gpu=True), SeesGpu, seconds=0.05)) == 10
    processes = [path.name.split() for path in (tmp_path / "notes").iterdir()]
    assert sorted(gpu for gpu, _ in processes) in (["0", "1"], ["0"], ["1"])


def test_processes_on_one_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(memory, "_processes", 1)
    monkeypatch.setattr(memory, "_processes_of_gpu", 1)
    assert memory.available_gpu_memory("cuda") == 800
    memory.share_memory(5, 2)
    assert memory.available_gpu_memory("cuda") == 266


def test_what_torch_has_cached_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cuda"))
    memory.free_cached_gpu_memory()
    assert emptied == ["cuda"]
