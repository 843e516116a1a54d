"""How Efficient LoFTR and MambaGlue are trained: features, losses, overfitting a tiny set."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfm_matchers.confs import Preprocessing
from sfm_matchers.features.extraction import extract_image, load_extractor
from sfm_matchers.features.networks import to_gray
from sfm_matchers.networks import efficient_loftr, jamma
from sfm_matchers.networks.mambaglue import MambaGlueConfig
from sfm_matchers.training import schedule
from sfm_matchers.training.data.homographies import sample_homography_pairs
from sfm_matchers.training.data.pair_batch import PairBatch
from sfm_matchers.training.data.photographs import Photographs, load_photographs
from sfm_matchers.training.data.sift_features import extract_sift
from sfm_matchers.training.loop import AnyTask, Trainer
from sfm_matchers.training.losses.mambaglue import UNMATCHED, GroundTruthMatches
from sfm_matchers.training.optimizers import MatrixAndScalarOptimizer
from sfm_matchers.training.options import TaskOptions, TrainingOptions
from sfm_matchers.training.tasks.efficient_loftr import EfficientLoFTRTask
from sfm_matchers.training.tasks.jamma import JamMaTask
from sfm_matchers.training.tasks.mambaglue import MambaGlueTask, match_measures
from sfm_matchers.training.tasks.table import TASKS, make_task

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
TINY_MAMBAGLUE = MambaGlueConfig(features="sift", keypoint_order="score", num_layers=2, dim=64)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    """Four pictures of random colours at several sizes: something to tell places apart by."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    names = [f"{index}.png" for index in range(4)]
    for name in names:
        picture = np.zeros((240, 320, 3), np.float32)
        for columns, weight in ((10, 0.5), (40, 0.3), (100, 0.2)):
            coarse = random.uniform(0, 255, (columns * 3 // 4, columns, 3)).astype(np.float32)
            picture += weight * cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / name), picture.clip(0, 255).astype(np.uint8))
    return load_photographs(folder, names)


def _pairs(
    photographs: Photographs, count: int, size: tuple[int, int], strength: float = 0.4
) -> PairBatch:
    generator = torch.Generator().manual_seed(1)
    return sample_homography_pairs(photographs, count, size, strength=strength, generator=generator)


def _overfit(
    task: AnyTask, network: nn.Module, batch: PairBatch, goal: dict[str, float], steps: int
) -> dict[str, Tensor]:
    """Train on one batch until the metrics exceed the goal; returns the last ones."""
    optimizer = MatrixAndScalarOptimizer(network, 4e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    metrics: dict[str, Tensor] = {}
    for step in range(steps):
        # Steps of a fixed length: only a falling learning rate lets them settle.
        optimizer.set_learning_rate(4e-3 * (1 - step / steps))
        loss, metrics = task.losses(network.train(), batch, 0.2, generator)
        network.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if all(float(metrics[name]) > value for name, value in goal.items()):
            break
    return metrics


def test_every_matcher_has_a_task() -> None:
    assert list(TASKS) == ["jamma", "eloftr", "mambaglue"]


def test_every_network_takes_the_sizes_of_the_schedule() -> None:
    multiple = math.lcm(jamma.SIZE_MULTIPLE, efficient_loftr.SIZE_MULTIPLE)
    for size in (*itertools.chain(*schedule.SIZES.values()), schedule.VALIDATION_SIZE):
        assert all(side % multiple == 0 for side in size)


# Efficient LoFTR


def test_gray_is_that_of_opencv() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    gray = to_gray(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)
    np.testing.assert_allclose(gray[0, 0].numpy() * 255, expected, atol=0.51)


def test_eloftr_starts_above_chance_and_overfits_a_tiny_set(photographs: Photographs) -> None:
    torch.manual_seed(0)
    task = EfficientLoFTRTask()
    task.fine_share, task.windows = 1.0, 16
    network = task.build_network(photographs, CPU)
    batch = _pairs(photographs, 2, (64, 96))
    with torch.no_grad():
        _, before = task.losses(network.train(), batch, 0.0, torch.Generator().manual_seed(0))
    assert before["coarse_accuracy"] > 5 / 96  # of 96 cells
    after = _overfit(task, network, batch, {"coarse_accuracy": 0.95}, steps=40)
    assert after["coarse_accuracy"] > 0.95
    assert after["fine_loss"] < 0.9 * before["fine_loss"]


@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_eloftr_losses_reach_every_parameter(photographs: Photographs, progress: float) -> None:
    torch.manual_seed(0)
    task = EfficientLoFTRTask()
    task.fine_share = 1.0
    network = task.build_network(photographs, CPU).train()
    batch = _pairs(photographs, 1, (64, 64), strength=0.2)
    loss, metrics = task.losses(network, batch, progress, torch.Generator().manual_seed(0))
    loss.backward()
    assert {"coarse_accuracy", "fine_loss", "fine_accuracy", "offset_loss"} <= set(metrics)
    assert torch.isfinite(loss)
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


# MambaGlue


def test_sift_of_training_looks_like_that_of_use(photographs: Photographs) -> None:
    image = photographs.pyramids[0][0]
    trained = extract_sift(image[None] / 255, max_keypoints=4096)
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    used = extract_image(load_extractor({"name": "sift"}), Preprocessing(), pixels)
    keypoints, scales, oris, descriptors = (
        values[0].numpy()
        for values in (trained.keypoints, trained.scales, trained.oris, trained.descriptors)
    )
    distance = np.linalg.norm(keypoints[:, None] - used["keypoints"][None], axis=-1)
    turn = np.angle(np.exp(1j * (oris[:, None] - np.deg2rad(used["oris"])[None])))
    distance[np.abs(turn) > 0.3] = np.inf  # one place may have several orientations
    nearest = distance.argmin(1)
    found = distance.min(1) < 1.0
    assert found.mean() > 0.6
    assert np.median(distance.min(1)[found]) < 0.2
    assert np.median(scales[found] / used["scales"][nearest[found]]) == pytest.approx(1, abs=0.03)
    assert abs(np.median(turn[np.arange(len(nearest)), nearest][found])) < 0.02
    cosine = (descriptors[found] * used["descriptors"].T[nearest[found]]).sum(1)
    assert np.median(cosine) > 0.95


def test_sift_keeps_the_largest_and_pads(photographs: Photographs) -> None:
    images = torch.zeros(2, 3, 96, 128)
    images[1] = photographs.pyramids[0][0][:, :96, :128] / 255
    features = extract_sift(images, max_keypoints=20)
    assert features.counts.tolist() == [0, 20]
    assert features.scales is not None
    assert (features.scales[1].diff() <= 0).all()
    everything = extract_sift(images[1:], max_keypoints=4096)
    assert everything.scales is not None
    assert features.scales[1, 0] == everything.scales.max()


def test_match_measures_count_known_keypoints_only() -> None:
    log_assignment = torch.full((1, 4, 4), -9.0)
    for row, column in ((0, 0), (1, 2), (2, 1)):
        log_assignment[0, row, column] = -0.1
    truth = GroundTruthMatches(torch.tensor([[0, UNMATCHED, -2]]), torch.tensor([[0, -2, -1]]))
    measures = match_measures(log_assignment, truth, 0.1)
    assert measures["recall"] == 1.0
    assert measures["precision"] == 0.5


def test_mambaglue_overfits_a_tiny_set(photographs: Photographs) -> None:
    torch.manual_seed(0)
    task = MambaGlueTask(TINY_MAMBAGLUE, max_keypoints=360)
    network = task.build_network(photographs, CPU)
    batch = task.with_features(_pairs(photographs, 2, (128, 160)))
    metrics = _overfit(task, network, batch, {"recall": 0.95, "precision": 0.95}, steps=100)
    assert metrics["recall"] > 0.95
    assert metrics["precision"] > 0.95


def test_keypoints_are_in_proportion_to_the_area(photographs: Photographs) -> None:
    task = MambaGlueTask(TINY_MAMBAGLUE, max_keypoints=200)
    for size, most in (((96, 128), 32), ((240, 320), 200), ((288, 384), 288)):
        batch = task.with_features(_pairs(photographs, 1, size))
        assert batch.features0.keypoints.shape[1] == most


def test_mambaglue_pairs_without_keypoints_have_no_part(photographs: Photographs) -> None:
    task = MambaGlueTask(TINY_MAMBAGLUE, max_keypoints=400)
    network = task.build_network(photographs, CPU)
    batch = _pairs(photographs, 2, (96, 128))
    generator = torch.Generator().manual_seed(0)
    first = PairBatch(batch.image0.clone(), batch.image1, batch.geometry)
    first.image0[1] = 0.5
    loss, metrics = task.losses(network, task.with_features(first), 0.5, generator)
    assert torch.isfinite(loss)
    assert "recall" in metrics
    blank = PairBatch(torch.zeros_like(batch.image0), batch.image1, batch.geometry)
    loss, metrics = task.losses(network, task.with_features(blank), 0.5, generator)
    assert loss == 0
    assert metrics == {}
    loss.backward()


def _tiny_task(name: str) -> AnyTask:
    task: AnyTask = MambaGlueTask(TINY_MAMBAGLUE, 1000)
    if name != "mambaglue":
        task = make_task(name, TaskOptions())
    if isinstance(task, JamMaTask | EfficientLoFTRTask):
        task.fine_share, task.windows = 1.0, 16
    return task


@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize("name", ["jamma", "eloftr", "mambaglue"])
def test_resumed_training_repeats_the_losses_of_an_uninterrupted_one(
    photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("sfm_matchers.training.schedule.SIZES", {1.0: [(64, 64)]})
    monkeypatch.setattr("sfm_matchers.training.schedule.REFERENCE_AREA", 64 * 64)
    options = TrainingOptions(steps=4, batch_size=1)

    def trainer(folder: str) -> Trainer:
        return Trainer(_tiny_task(name), options, photographs, tmp_path / folder, CPU)

    whole = trainer("whole")
    losses = [float(whole.train_step()["loss"]) for _ in range(3)]
    first = trainer("parts")
    resumed_losses = [float(first.train_step()["loss"])]
    first.save()
    second = trainer("parts")
    assert second.resume()
    resumed_losses += [float(second.train_step()["loss"]) for _ in range(2)]
    np.testing.assert_allclose(resumed_losses, losses, rtol=1e-4)
    assert np.ptp(losses) > 1e-3 * losses[0]  # the losses do tell one step from another
    for expected, value in zip(
        whole.average.state_dict().values(), second.average.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize("name", ["eloftr", "mambaglue"])
def test_task_runs_in_the_loop_and_validates(
    photographs: Photographs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr("sfm_matchers.training.schedule.SIZES", {1.0: [(64, 96)]})
    monkeypatch.setattr("sfm_matchers.training.schedule.VALIDATION_SIZE", (64, 96))
    task = EfficientLoFTRTask() if name == "eloftr" else MambaGlueTask(TINY_MAMBAGLUE, 1000)
    options = TrainingOptions(steps=100, batch_size=1, time_budget=0.0)
    trainer = Trainer(task, options, photographs, tmp_path, CPU)
    trainer.run(photographs)
    metrics = trainer.validate(photographs)
    measured = "coarse_accuracy" if name == "eloftr" else "recall"
    for kind in ("easy", "hard", "parallax"):
        assert 0 <= metrics[f"{kind}_{measured}"] <= 1
    resumed = Trainer(task, options, photographs, tmp_path, CPU)
    assert resumed.resume()
    assert resumed.step == 1
