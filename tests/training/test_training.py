"""Training data, losses, the loop and the measures it reports."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sfm_matchers.errors import InputError, WeightsError
from sfm_matchers.networks.jamma import CELL, JamMa
from sfm_matchers.training.data import views
from sfm_matchers.training.data.held_out import is_held_out
from sfm_matchers.training.data.homographies import (
    apply_homography,
    homography_from_corners,
    sample_homography_pairs,
)
from sfm_matchers.training.data.pair_batch import FirstPair, PairBatch, pixel_grid
from sfm_matchers.training.data.parallax import sample_parallax_pairs
from sfm_matchers.training.data.photographs import (
    Photographs,
    list_photographs,
    load_photographs,
)
from sfm_matchers.training.data.surfaces import Reliefs, RoundBodies
from sfm_matchers.training.loop import OneRate, TrainedNetwork, Trainer
from sfm_matchers.training.losses.supervision import (
    IGNORED,
    CellTruth,
    cell_truth,
    confident_precision,
    dual_cross_entropy,
    label_accuracy,
    unmatched_loss,
    window_labels,
    window_points,
)
from sfm_matchers.training.optimizers import MatrixAndScalarOptimizer
from sfm_matchers.training.options import TaskOptions, TrainingOptions
from sfm_matchers.training.tasks.jamma import (
    JamMaFineTask,
    JamMaTask,
    _shift_some,
    _transfer_errors,
)
from sfm_matchers.training.tasks.mambaglue import MambaGlueTask
from sfm_matchers.training.tasks.table import TASKS, make_task
from sfm_matchers.weights.loading import load_network, load_state_dict_file
from sfm_matchers.weights.registry import BUNDLED_DIR
from sfm_matchers.weights.safetensors_file import read_as_float32, save_half_precision

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    """Six pictures of smooth random colours: interpolation between pixels hardly changes them."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    names = [f"{index}.png" for index in range(6)]
    for name in names:
        coarse = random.uniform(0, 255, (12, 16, 3)).astype(np.float32)
        picture = cv2.resize(coarse, (320, 240), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / name), picture.clip(0, 255).astype(np.uint8))
    return load_photographs(folder, names)


def _colours(images: Tensor, points: Tensor) -> Tensor:
    """Colours (B, N, 3) of (B, 3, H, W) at (B, N, 2) pixels."""
    extent = points.new_tensor([images.shape[3], images.shape[2]])
    grid = (points + 0.5) * 2 / extent - 1
    sampled = torch.nn.functional.grid_sample(images, grid[:, None], align_corners=False)
    return sampled[:, :, 0].transpose(1, 2)


@pytest.mark.parametrize(
    ("sample", "agreeing"), [(sample_homography_pairs, 0.93), (sample_parallax_pairs, 0.75)]
)
@pytest.mark.parametrize("source", [0, 1])
def test_true_positions_have_the_same_colour(
    photographs: Photographs,
    monkeypatch: pytest.MonkeyPatch,
    sample: Callable[..., PairBatch],
    agreeing: float,
    source: int,
) -> None:
    monkeypatch.setattr(views, "vary_appearance", lambda images, strength, generator: images)
    generator = torch.Generator().manual_seed(3)
    batch = sample(photographs, 6, (96, 128), strength=0.7, generator=generator)
    images = (batch.image0, batch.image1)
    points = pixel_grid(96, 128, "cpu", 5).reshape(1, -1, 2).expand(6, -1, -1)
    warped, visible = batch.geometry.warp(points, source)
    difference = _colours(images[source], points) - _colours(images[1 - source], warped)
    difference = difference.abs().amax(-1)
    assert visible.float().mean() > 0.2
    # Colours blend at edges, and where a picture is squeezed on the narrow side of a box.
    assert difference[visible].median() < 0.01
    assert (difference[visible] < 0.05).float().mean() > agreeing
    shifted = _colours(images[1 - source], warped + 6.0)
    wrong = (_colours(images[source], points) - shifted).abs().amax(-1)[visible]
    assert wrong.median() > 4 * difference[visible].median()


@pytest.mark.parametrize("sample", [sample_homography_pairs, sample_parallax_pairs])
@pytest.mark.parametrize("source", [0, 1])
def test_points_given_once_for_all_pairs_are_looked_up_in_each(
    photographs: Photographs, sample: Callable[..., PairBatch], source: int
) -> None:
    generator = torch.Generator().manual_seed(3)
    batch = sample(photographs, 6, (96, 128), strength=1.0, generator=generator)
    points = pixel_grid(96, 128, "cpu", 5).reshape(1, -1, 2)
    warped, visible = batch.geometry.warp(points, source)
    expected, truly_visible = batch.geometry.warp(points.expand(6, -1, -1), source)
    torch.testing.assert_close(warped, expected)
    assert torch.equal(visible, truly_visible)


@pytest.mark.parametrize("roundness", [1.0, 0.0])
def test_rays_meet_the_first_side_of_round_bodies(roundness: float) -> None:
    axes = torch.diag(torch.tensor([2.0, 3.0, 0.5]))[None, None]
    bodies = RoundBodies(torch.tensor([[[0.0, 0.0, 4.0]]]), axes, torch.tensor([[roundness]]))
    ahead, aside, past = [0.0, 0.0, 1.0], [0.3, 0.45, 1.0], [0.9, 0.0, 1.0]
    origin, rays = torch.zeros(1, 3), torch.tensor([[ahead, aside, past]])
    t, a, b = bodies.intersect(origin, rays)
    torch.testing.assert_close(t[0, 0, 0], torch.tensor(3.5))
    assert abs(float(a[0, 0, 0])) < 1e-6
    assert abs(float(b[0, 0, 0])) < 1e-6
    assert t[0, 0, 2] == torch.inf
    x, y, z = (t[0, 0, 1] * rays[0, 1] - bodies.centre[0, 0]) / torch.tensor([2.0, 3.0, 0.5])
    torch.testing.assert_close(x * x + roundness * y * y + z * z, torch.tensor(1.0))
    assert 3.5 < t[0, 0, 1] < 4  # the near side
    assert a[0, 0, 1] > 0
    assert b[0, 0, 1] > 0


def test_rays_through_a_tube_meet_its_inside() -> None:
    axes = torch.eye(3)[None, None]
    tube = RoundBodies(torch.zeros(1, 1, 3), axes, torch.zeros(1, 1))
    rays = torch.tensor([[[0.0, 1.0, 0.5]]])  # from above, into the open end
    t, _, b = tube.intersect(torch.tensor([[0.0, -2.0, 0.0]]), rays)
    torch.testing.assert_close(t, torch.full((1, 1, 1), 2.0))
    assert abs(float(b)) < 1e-6


def _relief(heights: Tensor) -> Reliefs:
    """4 wide, 2 high, 1 deep each way, 5 before the origin."""
    axes = torch.diag(torch.tensor([2.0, 1.0, 0.5]))[None, None]
    grid = heights[None, None]
    return Reliefs(torch.tensor([[[0.0, 0.0, 5.0]]]), axes, grid, torch.full_like(grid, 0.5))


def test_rays_meet_a_slanted_relief_where_its_plane_is() -> None:
    relief = _relief(torch.linspace(-1, 1, 9).expand(9, 9).contiguous())  # z = 5 + x / 4
    rays = torch.tensor([[[0.0, 0.0, 1.0], [0.2, 0.1, 1.0], [-0.3, -0.1, 1.0], [0.6, 0.0, 1.0]]])
    t, a, b = relief.intersect(torch.zeros(1, 3), rays)
    expected = 5 / (1 - rays[0, :3, 0] / 4)
    torch.testing.assert_close(t[0, 0, :3], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(a[0, 0, :3], expected * rays[0, :3, 0] / 2, atol=1e-4, rtol=0)
    torch.testing.assert_close(b[0, 0, :3], expected * rays[0, :3, 1], atol=1e-4, rtol=0)
    assert t[0, 0, 3] == torch.inf
    assert torch.equal(relief.brightness(0, 0, torch.zeros(2, 2)), torch.full((2,), 0.5))


def test_rays_meet_the_nearest_bump_of_a_relief() -> None:
    waves = 0.9 * torch.cos(torch.linspace(-9, 9, 65))
    relief = _relief(waves[:, None] * waves[None])
    direction = torch.tensor([0.9, 0.4, 1.0])
    origin = torch.tensor([[-3.0, -1.8, 1.0]])
    offsets = torch.randn(200, 3, generator=torch.Generator().manual_seed(1)) * 0.05
    rays = (direction + offsets)[None]
    t = relief.intersect(origin, rays)[0][0, 0]

    steps = torch.linspace(0, 10, 20_001)
    points = origin + steps[:, None, None] * rays
    x, y, z = ((points - relief.centre[0, 0]) / torch.tensor([2.0, 1.0, 0.5])).unbind(-1)
    height = torch.nn.functional.grid_sample(
        relief.heights, torch.stack([x, y], -1)[None], align_corners=True
    )[0, 0]
    behind = (z > height) & (x.abs() < 1) & (y.abs() < 1)
    met = behind.any(0)
    first = steps[behind.int().argmax(0)]
    assert met.float().mean() > 0.5
    agrees = (t - first).abs() < 2e-3
    assert agrees[met].float().mean() > 0.97  # a step may pass over the tip of a bump


@pytest.mark.parametrize("sample", [sample_homography_pairs, sample_parallax_pairs])
def test_warp_there_and_back_is_the_identity(
    photographs: Photographs, sample: Callable[..., PairBatch]
) -> None:
    generator = torch.Generator().manual_seed(5)
    batch = sample(photographs, 3, (96, 128), strength=1.0, generator=generator)
    points = pixel_grid(96, 128, "cpu", 7).reshape(1, -1, 2).expand(3, -1, -1)
    warped, visible = batch.geometry.warp(points, 0)
    back, _ = batch.geometry.warp(warped, 1)
    assert visible.any()
    assert (back - points)[visible].norm(dim=-1).quantile(0.99) < 0.05
    first, first_visible = FirstPair(batch.geometry, 3).warp(points[:1], 0)
    torch.testing.assert_close(first[first_visible], warped[:1][visible[:1]])


@pytest.mark.parametrize("sample", [sample_homography_pairs, sample_parallax_pairs])
def test_the_truth_is_exact_where_the_network_is_not(
    photographs: Photographs, sample: Callable[..., PairBatch]
) -> None:
    generator = torch.Generator().manual_seed(6)
    geometry = sample(photographs, 2, (96, 128), strength=0.8, generator=generator).geometry
    points = pixel_grid(96, 128, "cpu", 8).reshape(1, -1, 2).expand(2, -1, -1)
    with torch.autocast("cpu", torch.bfloat16):
        warped, visible = geometry.warp(points, 0)
    assert torch.equal(warped, geometry.warp(points, 0)[0])
    assert torch.equal(visible, geometry.warp(points, 0)[1])


def test_same_seed_gives_the_same_pairs(photographs: Photographs) -> None:
    one, two, other = (
        sample_homography_pairs(
            photographs, 2, (64, 64), strength=1.0, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.image1, two.image1)
    assert not torch.equal(one.image1, other.image1)


def test_strength_zero_gives_identical_geometry(photographs: Photographs) -> None:
    generator = torch.Generator().manual_seed(0)
    batch = sample_homography_pairs(photographs, 2, (64, 96), strength=0.0, generator=generator)
    points = pixel_grid(64, 96, "cpu", 9).reshape(1, -1, 2).expand(2, -1, -1)
    warped, _ = batch.geometry.warp(points, 0)
    torch.testing.assert_close(warped, points.contiguous(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("sample", [sample_homography_pairs, sample_parallax_pairs])
def test_views_are_turned_as_far_as_asked(
    photographs: Photographs, sample: Callable[..., PairBatch]
) -> None:
    """At strength 0 nothing but the turn is left: seen in how a short line in the middle turns."""
    line = torch.tensor([[[47.5, 47.5], [51.5, 47.5]]])
    angles = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        batch = sample(photographs, 2, (96, 96), strength=0.0, generator=generator, max_turn=120.0)
        warped, _ = batch.geometry.warp(line.expand(2, -1, -1), 0)
        along = warped[:, 1] - warped[:, 0]
        assert (along.norm(dim=-1) - 4).abs().max() < 0.1
        angles += torch.rad2deg(torch.atan2(along[:, 1], along[:, 0])).tolist()
    assert all(abs(angle) < 121 for angle in angles)
    assert min(angles) < -60
    assert max(angles) > 60


def test_homography_maps_its_corners() -> None:
    source = torch.tensor([[[0.0, 0], [9, 0], [9, 7], [0, 7]]], dtype=torch.float64)
    target = torch.tensor([[[1.0, 2], [8, 1], [11, 9], [-1, 6]]], dtype=torch.float64)
    mapped, _ = apply_homography(homography_from_corners(source, target), source)
    torch.testing.assert_close(mapped, target)


@dataclass
class _Shift:
    """A geometry that moves everything by a fixed number of pixels and hides nothing."""

    x: float
    y: float

    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        sign = 1 if source == 0 else -1
        moved = points + sign * points.new_tensor([self.x, self.y])
        return moved, torch.ones_like(points[..., 0], dtype=torch.bool)


@dataclass
class _Window:
    """A shift along x; what leaves an image of `side` pixels is not visible."""

    x: float
    side: int

    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        moved, _ = _Shift(self.x, 0.0).warp(points, source)
        return moved, ((moved >= 0) & (moved < self.side)).all(-1)


def test_coarse_labels_of_a_shift() -> None:
    labels0, labels1, *_ = cell_truth(_Shift(8.0, 17.0), (32, 32), 8, 0.0, CPU)
    assert labels0[0, 0] == 2 * 4 + 1
    assert labels0[0, 3] == IGNORED  # column 4 does not exist
    assert labels1[0, 2 * 4 + 1] == 0
    assert labels1[0, 0] == IGNORED
    assert (labels0 != IGNORED).sum() == (labels1 != IGNORED).sum() == 2 * 3


def test_window_labels_of_a_shift() -> None:
    cells0, cells1 = torch.tensor([[5]]), torch.tensor([[6]])
    points0, points1 = (window_points(cells, 4, 8, 2, 5) for cells in (cells0, cells1))
    assert points0[0, 0, 12].tolist() == [8.0, 8.0]
    labels0, labels1 = window_labels(_Shift(10.0, 0.0), points0, points1, 2)
    assert labels0[0, 0, 12] == 13  # 2 px further right than the partner's centre
    assert labels0[0, 0, 14] == IGNORED
    assert labels1[0, 0, 13] == 12


def test_dual_cross_entropy_is_that_of_rows_and_columns() -> None:
    logits = torch.randn(1, 3, 4, dtype=torch.float64)
    labels0 = torch.tensor([[2, IGNORED, 0]])
    labels1 = torch.tensor([[2, IGNORED, 0, IGNORED]])
    rows, columns = logits.log_softmax(2), logits.log_softmax(1)
    expected = -(rows[0, 0, 2] + rows[0, 2, 0]) / 2 - (columns[0, 2, 0] + columns[0, 0, 2]) / 2
    torch.testing.assert_close(dual_cross_entropy(logits, labels0, labels1), expected)
    nothing = torch.full_like(labels0, IGNORED)
    assert dual_cross_entropy(logits, nothing, torch.full_like(labels1, IGNORED)) == 0


def test_cells_that_leave_the_image_have_no_partner() -> None:
    labels0, _, unmatched0, unmatched1 = cell_truth(_Window(8.0, 32), (32, 32), 8, 0.0, CPU)
    assert torch.equal(unmatched0, labels0 == IGNORED)
    assert unmatched0.view(4, 4)[:, 3].all()
    assert unmatched0.sum() == 4
    assert unmatched1.view(4, 4)[:, 0].all()
    assert unmatched1.sum() == 4


def test_unmatched_loss_grows_with_the_largest_probability() -> None:
    unmatched0 = torch.tensor([[True, False]])
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    flat = torch.zeros(1, 2, 3, requires_grad=True)
    loss = unmatched_loss(flat, unmatched0, nothing)
    torch.testing.assert_close(loss, -torch.tensor(2 / 3).log())
    peaked = torch.tensor([[[9.0, 0, 0], [9, 0, 0]]])
    assert unmatched_loss(peaked, unmatched0, nothing) > loss
    certain = torch.tensor([[[1e4, 0, 0], [0, 0, 0]]], requires_grad=True)
    unmatched_loss(certain, unmatched0, nothing).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()
    assert unmatched_loss(flat, torch.zeros_like(unmatched0), nothing) == 0


def test_confident_precision_counts_cells_without_partner_as_wrong() -> None:
    probability = torch.tensor([[[0.9, 0, 0], [0, 0.9, 0], [0, 0, 0.9], [0.1, 0, 0]]])
    labels = torch.tensor([[0, IGNORED, IGNORED, 1]])
    unmatched = torch.tensor([[False, True, False, False]])
    truth = CellTruth(labels, labels, unmatched, unmatched)
    assert confident_precision(probability, truth, 0.5) == 0.5
    assert confident_precision(probability, truth, 1.0) == 1


class _TinyTask(OneRate):
    """A small convolutional matcher: the loop's own behaviour shows in seconds."""

    trains = TrainedNetwork("tiny", features="sift", config={"coarse_threshold": 0.3})

    def build_network(self, photographs: Photographs, device: torch.device) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 8, stride=8), nn.BatchNorm2d(16), nn.GELU(), nn.Conv2d(16, 16, 1)
        ).to(device)

    def sample_batch(
        self,
        photographs: Photographs,
        batch_size: float,
        progress: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> PairBatch:
        return sample_homography_pairs(
            photographs, round(batch_size), (64, 64), strength=progress, generator=generator
        )

    def losses(
        self, network: nn.Module, batch: PairBatch, progress: float, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        features0, features1 = network(torch.cat([batch.image0, batch.image1])).chunk(2)
        similarity = features0.flatten(2).transpose(1, 2) @ features1.flatten(2)
        labels0, labels1, *_ = cell_truth(batch.geometry, (64, 64), 8, 0.0, CPU)
        # A draw of the global generator: it has to survive a stop as well.
        noise = 1 + 0.01 * torch.rand(())
        loss = noise * dual_cross_entropy(similarity, labels0, labels1)
        return loss, {"coarse_accuracy": label_accuracy(similarity, labels0)}

    def validate(
        self, network: nn.Module, photographs: Photographs, device: torch.device
    ) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        batch = self.sample_batch(photographs, 2, 1.0, generator, device)
        loss, _ = self.losses(network, batch, 1.0, generator)
        return {"loss": float(loss)}


def _loss_column(output: Path) -> list[float]:
    with (output / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_resumed_run_equals_uninterrupted_run(photographs: Photographs, tmp_path: Path) -> None:
    options = TrainingOptions(steps=8, batch_size=2, validate_every=3)
    whole = Trainer(_TinyTask(), options, photographs, tmp_path / "whole", CPU)
    whole.run(photographs)

    class InterruptedTask(_TinyTask):
        steps = 0

        def sample_batch(self, *arguments: Any) -> PairBatch:
            self.steps += 1
            if self.steps == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().sample_batch(*arguments)

    Trainer(InterruptedTask(), options, photographs, tmp_path / "parts", CPU).run(photographs)
    resumed = Trainer(_TinyTask(), options, photographs, tmp_path / "parts", CPU)
    assert resumed.resume()
    assert resumed.step == 3
    resumed.run(photographs)

    losses = _loss_column(tmp_path / "whole")
    assert len(losses) == 8
    np.testing.assert_allclose(_loss_column(tmp_path / "parts"), losses, rtol=1e-5)
    for expected, value in zip(
        whole.average.state_dict().values(), resumed.average.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, expected)
    assert (tmp_path / "whole" / "metrics.png").exists()


def test_time_budget_stops_with_a_checkpoint(photographs: Photographs, tmp_path: Path) -> None:
    options = TrainingOptions(steps=1000, batch_size=2, time_budget=0.0)
    Trainer(_TinyTask(), options, photographs, tmp_path, CPU).run(photographs)
    resumed = Trainer(_TinyTask(), options, photographs, tmp_path, CPU)
    assert resumed.resume()
    assert resumed.step == 1


def test_two_workers_share_a_batch(photographs: Photographs, tmp_path: Path) -> None:
    options = TrainingOptions(steps=4, batch_size=4, workers=2)
    trainer = Trainer(_TinyTask(), options, photographs, tmp_path, CPU)
    trainer.train_step()
    assert trainer.pairs == 4
    assert all(parameter.grad is not None for parameter in trainer.parameters)


def test_other_options_do_not_resume(photographs: Photographs, tmp_path: Path) -> None:
    Trainer(_TinyTask(), TrainingOptions(steps=5), photographs, tmp_path, CPU).save()
    other = Trainer(_TinyTask(), TrainingOptions(steps=6), photographs, tmp_path, CPU)
    with pytest.raises(InputError, match="steps=5"):
        other.resume()


def test_exported_weights_load_into_the_network(photographs: Photographs, tmp_path: Path) -> None:
    trainer = Trainer(JamMaTask(), TrainingOptions(steps=2), photographs, tmp_path, CPU)
    trainer.save()
    weights = load_file(tmp_path / "weights.safetensors")
    JamMa().load_state_dict(weights)
    for name, value in trainer.average.state_dict().items():
        if value.is_floating_point():
            assert weights[name].dtype == (torch.float16 if value.dim() > 1 else torch.float32)
            torch.testing.assert_close(weights[name].float(), value, atol=1e-3, rtol=1e-3)


@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize("matcher", TASKS)
def test_exported_weights_say_what_they_are_for(
    matcher: str, photographs: Photographs, tmp_path: Path
) -> None:
    task = make_task(matcher, TaskOptions())
    Trainer(task, TrainingOptions(steps=2), photographs, tmp_path, CPU).save()
    path = str(tmp_path / "weights.safetensors")
    features = {"features": "sift"} if matcher == "mambaglue" else {}
    used = load_network(matcher, path, **features).config
    assert {name: getattr(used, name) for name in task.trains.config} == task.trains.config
    if matcher == "eloftr":
        trained = task.build_network(photographs, CPU).config
        assert trained.centred_patch == used.centred_patch  # type: ignore[union-attr]
    other = "jamma" if matcher != "jamma" else "eloftr"
    with pytest.raises(WeightsError, match=f"made for {matcher}"):
        load_network(other, path)


def test_jamma_overfits_a_tiny_set(photographs: Photographs) -> None:
    torch.manual_seed(0)
    task = JamMaTask()
    task.fine_share = 0.0
    network = task.build_network(photographs, CPU).train()
    batch = sample_homography_pairs(
        photographs, 2, (64, 96), strength=0.4, generator=torch.Generator().manual_seed(1)
    )
    optimizer = MatrixAndScalarOptimizer(network, 1e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    accuracy = 0.0
    for _ in range(80):
        loss, metrics = task.losses(network, batch, 0.5, generator)
        network.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        accuracy = float(metrics["coarse_accuracy"])
        if accuracy > 0.95:
            break
    assert accuracy > 0.95


@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize("name", list(TASKS))
def test_pairs_that_share_nothing_give_a_finite_loss(name: str, photographs: Photographs) -> None:
    task = make_task(name, TaskOptions())
    network = task.build_network(photographs, CPU).train()
    generator = torch.Generator().manual_seed(1)
    batch = sample_homography_pairs(
        photographs, 2, (96, 96), strength=0.3, generator=generator
    ).mismatched()
    if isinstance(task, MambaGlueTask):
        batch = task.with_features(batch)
    loss, metrics = task.losses(network, batch, 0.5, generator)
    loss.backward()
    assert loss.isfinite()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    if name == "jamma":
        assert float(metrics["unmatched_loss"]) > 0


def test_jamma_trains_after_inference_on_images_of_that_size(photographs: Photographs) -> None:
    task = JamMaTask()
    network = task.build_network(photographs, CPU)
    with torch.inference_mode():
        network.eval()(torch.rand(1, 3, 80, 144), torch.rand(1, 3, 80, 144))
    generator = torch.Generator().manual_seed(2)
    batch = sample_homography_pairs(photographs, 1, (80, 144), strength=0.3, generator=generator)
    loss, _ = task.losses(network.train(), batch, 0.5, generator)
    loss.backward()


def test_jamma_fine_losses_reach_every_parameter(photographs: Photographs) -> None:
    torch.manual_seed(0)
    task = JamMaTask()
    task.fine_share = 1.0
    network = task.build_network(photographs, CPU).train()
    generator = torch.Generator().manual_seed(1)
    batch = sample_homography_pairs(photographs, 1, (64, 96), strength=0.3, generator=generator)
    loss, metrics = task.losses(network, batch, 0.5, generator)
    loss.backward()
    assert {"fine_loss", "fine_accuracy", "offset_error"} <= set(metrics)
    missing = [name for name, p in network.named_parameters() if p.grad is None]
    assert missing == []
    assert torch.isfinite(loss)
    assert batch.image_size[0] % CELL == 0


def test_only_the_fine_stage_of_jamma_learns(photographs: Photographs, tmp_path: Path) -> None:
    options = TrainingOptions(steps=2, batch_size=1)
    trainer = Trainer(JamMaFineTask(), options, photographs, tmp_path, CPU)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    metrics = trainer.train_step()
    assert {"fine_loss", "fine_accuracy", "offset_error", "match_error"} <= set(metrics)
    changed = {
        name.split(".")[1]
        for name, value in trainer.network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == set(JamMaFineTask.modules)
    trainer.save()
    with pytest.raises(InputError, match="other parts of the network, or with another optimizer"):
        Trainer(JamMaTask(), options, photographs, tmp_path, CPU).resume()


def test_workers_flush_denormal_numbers(photographs: Photographs, tmp_path: Path) -> None:
    options = TrainingOptions(steps=1, workers=2)
    trainer = Trainer(_TinyTask(), options, photographs, tmp_path, CPU)
    tiny = torch.tensor([1e-30])
    assert all(trainer.workers.map(lambda _: float(tiny * 1e-10) == 0.0, range(4)))


def test_training_leaves_the_arithmetic_of_its_caller(
    photographs: Photographs, tmp_path: Path
) -> None:
    """A process that trains and goes on must not take small numbers for zero afterwards."""
    Trainer(_TinyTask(), TrainingOptions(steps=1), photographs, tmp_path, CPU).run(photographs)
    assert float(np.float32(1e-30) * np.float32(1e-12)) > 0


def test_shifted_cells_stay_within_the_grid() -> None:
    cells = torch.arange(12)[None]
    generator = torch.Generator().manual_seed(0)
    shifted = _shift_some(cells, (3, 4), 1.0, generator)
    assert ((shifted // 4 - cells // 4).abs() <= 1).all()
    assert ((shifted % 4 - cells % 4).abs() <= 1).all()
    assert (shifted != cells).any()
    assert torch.equal(_shift_some(cells, (3, 4), 0.0, generator), cells)


def test_transfer_errors_of_a_shift() -> None:
    points0 = torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    points1 = points0 + torch.tensor([[8.5, 0.0], [8.0, 90.0]])
    errors = _transfer_errors(_Shift(8.0, 0.0), [2], points0, points1)
    assert errors.tolist() == [0.5, 4.0]  # an error along an axis counts for 4 px at most


def test_held_out_photographs_do_not_depend_on_the_others(tmp_path: Path) -> None:
    names = [f"{index:04d}.jpg" for index in range(2000)]
    share = sum(map(is_held_out, names)) / len(names)
    assert 0.07 < share < 0.13
    with pytest.raises(InputError, match="not a folder"):
        list_photographs(tmp_path / "absent")
    with pytest.raises(InputError, match="no photographs"):
        list_photographs(tmp_path)


def test_the_held_out_photographs_do_not_depend_on_the_folder_given() -> None:
    names = [f"{index:04d}.jpg" for index in range(100)]
    assert list(map(is_held_out, names)) == [is_held_out(f"images/{name}") for name in names]


@pytest.mark.parametrize("file", sorted(BUNDLED_DIR.glob("*.safetensors")), ids=lambda f: f.stem)
def test_bundled_weights_are_a_start_for_training(file: Path) -> None:
    """Training begins with the tensors that the matchers use."""
    started, used = read_as_float32(file), load_state_dict_file(file)
    assert started.keys() == used.keys()
    for name, tensor in started.items():
        torch.testing.assert_close(tensor, used[name].to(tensor.dtype), rtol=0, atol=0)


def test_weights_of_a_run_keep_variances_beyond_half_precision(tmp_path: Path) -> None:
    weights = {"norm.running_var": torch.tensor([0.5, 3e5]), "conv.weight": torch.ones(2, 1, 3, 3)}
    save_half_precision(weights, tmp_path / "weights.safetensors", {})
    stored = load_state_dict_file(tmp_path / "weights.safetensors")
    assert stored["conv.weight"].dtype == torch.float16
    for read in (stored, read_as_float32(tmp_path / "weights.safetensors")):
        torch.testing.assert_close(read["norm.running_var"], weights["norm.running_var"])
