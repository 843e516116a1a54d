"""Training on posed photographs with depth: rendered scenes in the layout of MegaDepth."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from posed_photographs import write_posed_photographs
from torch import Tensor, nn

from sfm_matchers.errors import InputError
from sfm_matchers.evaluation.pair_lists import read_scene_info
from sfm_matchers.networks.mambaglue import MambaGlueConfig
from sfm_matchers.synthetic import (
    Camera,
    Scene,
    camera_path,
    make_scene,
    project,
    render,
    unproject,
)
from sfm_matchers.training.data.depth_geometry import DepthGeometry
from sfm_matchers.training.data.megadepth import (
    PosedPhotographs,
    ResizedDepthGeometry,
    load_megadepth,
)
from sfm_matchers.training.data.pair_batch import PairBatch, pixel_grid
from sfm_matchers.training.data.photographs import Photographs, load_photographs
from sfm_matchers.training.data.sift_features import extract_sift
from sfm_matchers.training.loop import AnyTask
from sfm_matchers.training.losses.mambaglue import IGNORED, ground_truth_matches
from sfm_matchers.training.losses.supervision import IGNORED as NO_LABEL
from sfm_matchers.training.losses.supervision import cell_truth
from sfm_matchers.training.options import RunOptions, TrainingOptions
from sfm_matchers.training.run import train
from sfm_matchers.training.schedule import sample_scheduled_pairs, validation_sets
from sfm_matchers.training.tasks.efficient_loftr import EfficientLoFTRTask
from sfm_matchers.training.tasks.jamma import JamMaTask
from sfm_matchers.training.tasks.mambaglue import MambaGlueTask

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CAMERA = Camera.from_field_of_view(320, 256)
SIZE = (128, 160)  # height and width at which the pairs are drawn: half of the photographs
HALF = Camera(160, 128, CAMERA.fx / 2, CAMERA.fy / 2, 79.5, 63.5)  # sees what a reduced photo shows
VIEWS = 3


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(seed=3, kind="courtyard", texture_size=256)


@pytest.fixture(scope="module")
def poses(scene: Scene) -> list[np.ndarray]:
    return camera_path(scene, count=24)[:VIEWS]


@pytest.fixture(scope="module")
def megadepth(
    tmp_path_factory: pytest.TempPathFactory, scene: Scene, poses: list[np.ndarray]
) -> Path:
    """One scene of three photographs and its index, with a photograph that is not used."""
    folder = tmp_path_factory.mktemp("megadepth")
    write_posed_photographs(
        folder,
        scene,
        CAMERA,
        poses,
        images="Undistorted_SfM/0000/images",
        depths="phoenix/S6/zl548/MegaDepth_v1/0000/dense0/depths",
        unused=1,
    )
    return folder


@pytest.fixture(scope="module")
def posed(megadepth: Path) -> PosedPhotographs:
    return load_megadepth(megadepth, megadepth / "scene_info")[0]


@pytest.fixture(scope="module")
def photographs(megadepth: Path, posed: PosedPhotographs) -> Photographs:
    folder = megadepth / "Undistorted_SfM" / "0000" / "images"
    loaded = load_photographs(folder, [f"{view}.png" for view in range(VIEWS)])
    loaded.posed = posed
    return loaded


def _draw(posed: PosedPhotographs, count: int, size: tuple[int, int] = SIZE) -> PairBatch:
    return posed.sample_pairs(count, size, generator=torch.Generator().manual_seed(0))


def _first_pair(megadepth: Path) -> PairBatch:
    """The pair of views 0 and 1, in that order."""
    info = read_scene_info(megadepth / "scene_info" / "0000_0.1_0.3.npz")
    info.pairs[1] = info.pairs[0]
    posed = PosedPhotographs(megadepth, [info])
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        if posed.draw_pair(generator)[1] == (0, 1):
            generator.manual_seed(seed)
            return posed.sample_pairs(1, SIZE, generator=generator)
    raise AssertionError("no seed draws the pair in this order")


def test_supervision_agrees_with_the_rendered_truth(
    megadepth: Path, scene: Scene, poses: list[np.ndarray]
) -> None:
    """Truth: the same places rendered by cameras of the reduced size, without any resampling."""
    batch = _first_pair(megadepth)
    grid = pixel_grid(*SIZE, "cpu").reshape(1, -1, 2)
    here, there = (render(scene, HALF, pose) for pose in poses[:2])
    warped, visible = batch.geometry.warp(grid, 0)
    expected, depth = project(unproject(here.depth, HALF, poses[0]), HALF, poses[1])
    expected, depth = expected.reshape(-1, 2), depth.reshape(-1)
    known = np.isfinite(warped[0].numpy()).all(1)
    assert (known == (here.depth.ravel() > 0)).mean() > 0.99

    inside = ((expected > 2) & (expected < [157, 125])).all(1) & (depth > 0)
    nearest = np.rint(np.where(inside[:, None], expected, 2)).astype(int)
    around = np.stack([nearest + [x, y] for y in (-2, 0, 2) for x in (-2, 0, 2)])
    surfaces = there.surface_ids[around[..., 1], around[..., 0]]
    depths = there.depth[around[..., 1], around[..., 0]]
    seen = inside & (surfaces == here.surface_ids.ravel()).all(0)
    hidden = inside & ((depths > 0) & (depths < 0.85 * depth)).all(0)
    # Between two surfaces, a pixel of the reduced size may show the other than one of the photo.
    ids = here.surface_ids.astype(np.float32)
    uniform = (cv2.dilate(ids, np.ones((3, 3))) == cv2.erode(ids, np.ones((3, 3)))).ravel()
    outside = ((expected < -1) | (expected > [160, 128])).any(1) & (depth > 0)
    seen, hidden, outside = seen & uniform, hidden & uniform, outside & uniform
    found = visible[0].numpy()
    assert seen.sum() > 3000
    assert hidden.sum() > 50
    assert outside.sum() > 100
    assert found[seen].mean() > 0.995
    assert found[hidden].mean() < 0.01
    assert not found[outside].any()
    error = np.linalg.norm(warped[0].numpy() - expected, axis=1)[seen & found]
    assert np.median(error) < 0.05
    assert np.quantile(error, 0.99) < 0.5


def test_true_positions_have_the_same_colour(posed: PosedPhotographs) -> None:
    batch = _draw(posed, 2)
    points = pixel_grid(*SIZE, "cpu", 3).reshape(1, -1, 2).expand(2, -1, -1)
    warped, visible = batch.geometry.warp(points, 0)
    differences = []
    for shift in (0.0, 4.0):
        positions = torch.where(visible[..., None], warped + shift, 0.0)
        grid = (positions + 0.5) * 2 / torch.tensor([160.0, 128.0]) - 1
        there = nn.functional.grid_sample(batch.image1, grid[:, None], align_corners=False)[:, :, 0]
        here = nn.functional.grid_sample(
            batch.image0,
            ((points + 0.5) * 2 / torch.tensor([160.0, 128.0]) - 1)[:, None],
            align_corners=False,
        )[:, :, 0]
        differences.append((here - there).abs().amax(1)[visible].mean())
    assert differences[1] > 1.5 * differences[0]


def test_warp_there_and_back_is_the_identity(posed: PosedPhotographs) -> None:
    batch = _draw(posed, 3, (96, 160))  # photographs fill 120 of the 160 columns
    points = pixel_grid(96, 160, "cpu", 3).reshape(1, -1, 2).expand(3, -1, -1)
    warped, visible = batch.geometry.warp(points, 0)
    back, _ = batch.geometry.warp(warped, 1)
    assert visible.any()
    # The depth is that of the nearest pixel of the photograph, which counts on slanted surfaces.
    assert (back - points)[visible].norm(dim=-1).quantile(0.95) < 0.3
    beside = points[..., 0] >= 120
    assert not visible[beside].any()
    assert warped[beside].isinf().all()
    assert (batch.image0[:, :, :, 120:] == 0).all()


@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize("task", ["jamma", "eloftr", "mambaglue"])
def test_every_task_trains_on_posed_pairs(photographs: Photographs, task: str) -> None:
    torch.manual_seed(0)
    config = MambaGlueConfig(features="sift", keypoint_order="score", num_layers=2, dim=64)
    tasks: dict[str, AnyTask] = {
        "jamma": JamMaTask(),
        "eloftr": EfficientLoFTRTask(),
        "mambaglue": MambaGlueTask(config, max_keypoints=128),
    }
    chosen = tasks[task]
    if isinstance(chosen, JamMaTask | EfficientLoFTRTask):
        chosen.fine_share = 1.0
    network = chosen.build_network(photographs, CPU).train()
    assert photographs.posed is not None
    batch = _draw(photographs.posed, 1)
    if isinstance(chosen, MambaGlueTask):
        batch = chosen.with_features(batch)
    loss, metrics = chosen.losses(network, batch, 0.2, torch.Generator().manual_seed(0))
    loss.backward()
    assert torch.isfinite(loss)
    measured = {"jamma": "fine_accuracy", "eloftr": "fine_loss", "mambaglue": "recall"}[task]
    assert torch.isfinite(metrics[measured])
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_most_cells_and_keypoints_have_a_label(posed: PosedPhotographs) -> None:
    batch = _draw(posed, 2)
    labels0, labels1, *_ = cell_truth(batch.geometry, SIZE, 8, 0.0, CPU)
    assert (labels0 != NO_LABEL).float().mean() > 0.3
    assert (labels1 != NO_LABEL).float().mean() > 0.3
    features = [extract_sift(image, 256) for image in (batch.image0, batch.image1)]
    truth = ground_truth_matches(features[0], features[1], batch.geometry)
    assert (truth.matches0 >= 0).sum() > 20


class _UnknownDepth:
    """Everything stays where it is; of the left half nothing is known."""

    def warp(self, points: Tensor, source: int) -> tuple[Tensor, Tensor]:
        known = points[..., 0] > 80
        return torch.where(known[..., None], points, torch.inf), known


def test_keypoints_of_unknown_depth_are_ignored(posed: PosedPhotographs) -> None:
    features = extract_sift(_draw(posed, 1).image0, 256)
    truth = ground_truth_matches(features, features, _UnknownDepth())
    left = features.keypoints[..., 0] < 80
    assert left.any()
    assert (truth.matches0[left] == IGNORED).all()
    assert (truth.matches1[left] == IGNORED).all()


def test_depth_threshold_tells_hidden_from_visible() -> None:
    near, far = torch.full((1, 8, 8), 2.0), torch.full((1, 8, 8), 2.2)
    intrinsics, pose = torch.tensor([[[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]]), torch.eye(4)[None]
    point = torch.tensor([[[4.0, 4.0]]])
    one = torch.ones(1, 2)
    for threshold, expected in ((0.05, False), (0.2, True)):
        geometry = DepthGeometry(far, near, intrinsics, intrinsics, pose, threshold)
        _, visible = ResizedDepthGeometry(geometry, one, one).warp(point, 0)
        assert bool(visible) is expected


def test_the_same_points_of_every_pair_have_the_depth_of_their_own() -> None:
    depths = torch.stack([torch.full((8, 8), depth) for depth in (2.0, 4.0)])
    intrinsics = torch.tensor([[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]).expand(2, -1, -1)
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[:, 0, 3] = 0.25  # a pixel at a depth of 2
    warped, visible = DepthGeometry(depths, depths, intrinsics, intrinsics, pose).warp(
        torch.tensor([[[4.0, 4.0]]]), 0
    )
    torch.testing.assert_close(warped[:, 0, 0], torch.tensor([5.0, 4.5]), atol=1e-3, rtol=0)
    assert visible.all()


def test_half_of_the_batches_are_posed(photographs: Photographs) -> None:
    kinds = [
        type(sample_scheduled_pairs(photographs, 0.1, 0.1, generator, CPU, 0.0).geometry).__name__
        for seed in range(12)
        for generator in [torch.Generator().manual_seed(seed)]
    ]
    assert 3 <= kinds.count("ResizedDepthGeometry") <= 9


def test_posed_pairs_are_validated_on(
    photographs: Photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfm_matchers.training.schedule.VALIDATION_SIZE", SIZE)
    sets = validation_sets(photographs, CPU, 0.0)
    assert list(sets) == ["easy", "hard", "parallax", "turned", "posed"]
    assert [len(batch) for batch in sets["posed"]] == [4, 4]
    again = validation_sets(photographs, CPU, 0.0)["posed"]
    assert torch.equal(sets["posed"][1].image0, again[1].image0)


def test_same_seed_gives_the_same_posed_pairs(posed: PosedPhotographs) -> None:
    one, two = (_draw(posed, 2) for _ in range(2))
    assert torch.equal(one.image1, two.image1)


def test_scenes_are_held_out_as_a_whole(megadepth: Path, tmp_path: Path) -> None:
    source = (megadepth / "scene_info" / "0000_0.1_0.3.npz").read_bytes()
    names = [f"{scene:04d}_{part}.npz" for scene in range(30) for part in ("0.1_0.3", "0.3_0.5")]
    for name in names:
        (tmp_path / name).write_bytes(source)
    training, held_out = load_megadepth(megadepth, tmp_path)
    assert len(training.scenes) + len(held_out.scenes) == 60
    assert 2 <= len(held_out.scenes) <= 12
    assert len(held_out.scenes) % 2 == 0


def test_broken_megadepth_is_explained(megadepth: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no scene_info files"):
        load_megadepth(megadepth, tmp_path)
    lost, _ = load_megadepth(tmp_path, megadepth / "scene_info")
    with pytest.raises(InputError, match="cannot be read"):
        _draw(lost, 1)


def test_command_trains_on_megadepth_and_measures_real_pairs(
    megadepth: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    poses: list[np.ndarray],
) -> None:
    """One step of MambaGlue by `training.run.train`, with a validation on a list of pairs."""
    pytest.importorskip("pycolmap")
    monkeypatch.setattr("sfm_matchers.training.schedule.REFERENCE_AREA", SIZE[0] * SIZE[1])
    monkeypatch.setattr("sfm_matchers.training.schedule.SIZES", {1.0: [SIZE]})
    monkeypatch.setattr(
        "sfm_matchers.training.schedule.validation_sets",
        lambda photographs, device, max_turn: {"posed": [_draw(photographs.posed, 1)]},
    )
    full = [np.vstack([pose, [0, 0, 0, 1]]) for pose in poses]
    numbers = [*CAMERA.K.ravel(), *CAMERA.K.ravel(), *(full[1] @ np.linalg.inv(full[0])).ravel()]
    images = megadepth / "Undistorted_SfM" / "0000" / "images"
    pairs_file = tmp_path / "pairs.txt"
    pairs_file.write_text(" ".join(["0.png", "1.png", "0", "0", *map(str, numbers)]) + "\n")
    with caplog.at_level(logging.INFO, logger="sfm_matchers"):
        train(
            RunOptions(
                "mambaglue",
                images,
                tmp_path / "run",
                megadepth_dir=megadepth,
                validation_pairs=pairs_file,
                validation_images=images,
                device="cpu",
            ),
            TrainingOptions(steps=1, batch_size=1, validate_every=1),
        )
    with (tmp_path / "run" / "validation.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert 0 <= float(row["pose_auc20"]) <= 1
    assert float(row["precision"]) > 0.5  # the start is already a matcher of descriptors
    assert 0 <= float(row["posed_recall"]) <= 1
    assert "protocol: 1 pairs of" in caplog.text
    absent = tmp_path / "absent.txt"
    run = RunOptions("mambaglue", images, tmp_path / "other", validation_pairs=absent, device="cpu")
    with pytest.raises(InputError, match="no file"):
        train(run, TrainingOptions(steps=1))
