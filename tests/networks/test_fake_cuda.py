"""Networks, matchers, front-ends and losses on a GPU, without one; kernels compiled ahead."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import fake_cuda, is_on_gpu
from short_matchers import sift_like
from torch import Tensor, nn

from sfm_matchers.features import kornia as kornia_features
from sfm_matchers.features.base import Features
from sfm_matchers.matchers import coarse_to_fine
from sfm_matchers.matchers import efficient_loftr as eloftr_module
from sfm_matchers.matchers import jamma as jamma_module
from sfm_matchers.matchers import mambaglue as mambaglue_module
from sfm_matchers.networks import jamma
from sfm_matchers.networks.efficient_loftr import EfficientLoFTR, EfficientLoFTRConfig
from sfm_matchers.networks.jamma import JamMa, JamMaConfig
from sfm_matchers.networks.mambaglue import LocalFeatures, MambaGlue, MambaGlueConfig
from sfm_matchers.networks.precision import PRECISIONS
from sfm_matchers.training.data.homographies import HomographyGeometry
from sfm_matchers.training.data.pair_batch import PairBatch
from sfm_matchers.training.data.sparse_pairs import SparsePairBatch
from sfm_matchers.training.losses.mambaglue import GroundTruthMatches
from sfm_matchers.training.tasks.efficient_loftr import EfficientLoFTRTask
from sfm_matchers.training.tasks.jamma import JamMaTask
from sfm_matchers.training.tasks.mambaglue import MambaGlueTask

pytestmark = pytest.mark.slow

CACHES = (jamma.normalized_positions, jamma.scan_order)
SIZE = (96, 128)

batches_in_each_precision = pytest.mark.parametrize(
    ("batch", "precision"), list(zip((1, 8, 8), PRECISIONS, strict=True))
)


def on_cuda(network: nn.Module) -> Any:
    """The network, which lies on the GPU already, as one that lets itself be moved there."""
    network.to = lambda device: network  # type: ignore[assignment, method-assign]
    return network.eval()


@batches_in_each_precision
def test_jamma(batch: int, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch, *CACHES), torch.device("cuda"), torch.inference_mode():
        network = JamMa(JamMaConfig(precision=precision)).eval()
        images = [torch.rand(batch, 3, *SIZE) for _ in range(2)]
        masks = [torch.ones(batch, 12, 16, dtype=torch.bool) for _ in range(2)]
        for arguments in ([], masks):
            assert_matches(network.match(*map(network.encode, images), *arguments))


@batches_in_each_precision
@pytest.mark.parametrize("skip_softmax", [False, True])
def test_efficient_loftr(
    batch: int, precision: str, skip_softmax: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EfficientLoFTRConfig(precision=precision, skip_softmax=skip_softmax)
    with fake_cuda(monkeypatch), torch.device("cuda"), torch.inference_mode():
        network = EfficientLoFTR(config).eval()
        images = [torch.rand(batch, 1, *size) for size in (SIZE, (64, 160))]
        assert_matches(network.match(*map(network.encode, images)))


@batches_in_each_precision
@pytest.mark.parametrize(("confidence", "stops"), [(-1.0, False), (0.95, False), (0.95, True)])
def test_mambaglue(
    batch: int, precision: str, confidence: float, stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfm_matchers.networks.mambaglue.check_features", lambda *_: None)
    options = {"precision": precision, "keypoint_order": "score", "num_layers": 3}
    options |= {"depth_confidence": confidence, "width_confidence": confidence}
    config = MambaGlueConfig("sift", **options)
    with fake_cuda(monkeypatch, truth=stops), torch.device("cuda"), torch.inference_mode():
        network = MambaGlue(config).eval()
        output = network(features_of(batch, 40), features_of(batch, 24))
        assert is_on_gpu(output.matches0, output.matching_scores0, output.stop)
        assert output.matches0.shape == (batch, 40)


def features_of(batch: int, count: int) -> LocalFeatures:
    return LocalFeatures(
        torch.rand(batch, count, 2),
        torch.rand(batch, count, 128),
        torch.rand(batch, 2),
        *(torch.rand(batch, count) for _ in range(3)),
        torch.full((batch,), count),
    )


def assert_matches(output: Any) -> None:
    assert is_on_gpu(output.batch_ids, output.keypoints0, output.keypoints1, output.scores)
    assert output.keypoints0.dtype == output.scores.dtype == torch.float32
    assert output.keypoints0.shape == output.keypoints1.shape == (*output.scores.shape, 2)


# ---------------------------------------------------------------------------------------------
# Matchers and front-ends


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", ["jamma", "eloftr"])
def test_detector_free_matchers(name: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From photos to what goes back to the CPU."""
    seen: list[tuple[Tensor, ...]] = []

    def split(*tensors: Any) -> list[None]:
        seen.append(tensors[:4])
        return [None] * len(tensors[4])

    monkeypatch.setattr(coarse_to_fine, "split_matches", split)
    with fake_cuda(monkeypatch, *CACHES):
        with torch.device("cuda"):
            network = on_cuda(JamMa() if name == "jamma" else EfficientLoFTR())
        matcher = (
            jamma_module.JamMaMatcher(network, 128, "cuda")
            if name == "jamma"
            else eloftr_module.EfficientLoFTRMatcher(network, 128, "cuda")
        )
        photos = [np.zeros((height, 128, 3), np.uint8) for height in (96, 64)]
        encoded = [matcher.encode(photo) for photo in photos]
        matcher.match_batch([(encoded[0], encoded[1])] * batch)
        looks = matcher.look([(encoded[0], encoded[1])] * batch)
        looks[-1].refined()
    assert matcher.batch_size == 8
    assert len(seen) == batch + 2
    assert all(is_on_gpu(*tensors) for tensors in seen)


def test_mambaglue_takes_features_of_different_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch, truth=False):
        with torch.device("cuda"):
            network = on_cuda(MambaGlue(MambaGlueConfig("sift", num_layers=2)))
        matcher = mambaglue_module.MambaGlueMatcher(network, "cuda", resize_max=1600)
        features = [matcher._features([sift_like(n, 1), sift_like(9, 2)]) for n in (30, 20)]
        output = network(*features)
        assert is_on_gpu(output.matches0, features[0].keypoints, features[0].num_keypoints)


def test_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def keep(*tensors: Tensor) -> Features:
        seen.extend(tensors)
        return Features(np.zeros((0, 2)), np.zeros((128, 0)), np.zeros(0))

    monkeypatch.setattr(kornia_features, "to_features", keep)
    monkeypatch.setattr(kornia_features, "load_extractor_weights", lambda *_: None)
    with fake_cuda(monkeypatch):
        monkeypatch.setattr(nn.Module, "to", lambda self, device: self)
        with torch.device("cuda"):
            extractor = kornia_features.DiskExtractor(device="cuda")
        extractor.extract(np.zeros((2, *SIZE, 3), np.uint8))
    assert is_on_gpu(*seen)


# ---------------------------------------------------------------------------------------------
# Training


def pair_batch(count: int) -> PairBatch:
    eye = torch.eye(3).expand(count, 3, 3)
    valid = torch.ones(count, *SIZE, dtype=torch.bool)
    images = (torch.rand(count, 3, *SIZE) for _ in range(2))
    return PairBatch(*images, HomographyGeometry(eye, eye, valid, valid))


@pytest.mark.parametrize("name", ["jamma", "eloftr", "mambaglue"])
@pytest.mark.parametrize("half", [False, True])
def test_training_losses(name: str, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in bfloat16, as on GPUs that have it. Gradients need a real device."""
    monkeypatch.setattr("sfm_matchers.networks.mambaglue.check_features", lambda *_: None)
    generator = torch.Generator().manual_seed(0)
    with fake_cuda(monkeypatch, *CACHES), torch.device("cuda"):
        if name == "jamma":
            task, network, batch = JamMaTask(), JamMa(), pair_batch(2)
        elif name == "eloftr":
            task, network, batch = EfficientLoFTRTask(), EfficientLoFTR(), pair_batch(2)
        else:
            task = MambaGlueTask(MambaGlueConfig("sift"))
            network = MambaGlue(MambaGlueConfig("sift", num_layers=2))
            truth = GroundTruthMatches(*(torch.zeros(2, n, dtype=torch.int64) for n in (40, 24)))
            batch = SparsePairBatch(features_of(2, 40), features_of(2, 24), truth)
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            loss, metrics = task.losses(network.train(), batch, 0.5, generator)
    assert is_on_gpu(loss, *metrics.values())
    assert loss.requires_grad
    assert loss.ndim == 0


# ---------------------------------------------------------------------------------------------
# Kernels


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["forward", "backward"])
def test_triton_kernels_compile_ahead_of_time(kernel: str, capability: int) -> None:
    triton = pytest.importorskip("triton", reason="triton is not installed")
    compiler = pytest.importorskip("triton.compiler")
    target = pytest.importorskip("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    from sfm_matchers.networks.selective_scan import triton_channels, triton_kernels

    constants = triton_channels._constants(torch.zeros(1, 16))
    warps = constants.pop("num_warps")
    constants |= {"HAS_GATE": True, "KEEP_BORDERS": True}
    function = getattr(triton_kernels, kernel)
    signature = {
        name: "constexpr" if name in constants else "*fp32" if name.endswith("_ptr") else "i32"
        for name in inspect.signature(function.fn).parameters
    }
    given = {name: value for name, value in constants.items() if name in signature}
    source = compiler.ASTSource(function, signature, given)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    assert len(compiled.asm["cubin"]) > 1000
