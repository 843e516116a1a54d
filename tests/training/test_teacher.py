"""Learning from what a teacher matches in real photographs, and from nothing else there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from material import shared_path
from torch import Tensor

from sfm_matchers.errors import InputError, WeightsError
from sfm_matchers.geometry.epipolar import sampson_distance
from sfm_matchers.geometry.local_affine_maps import local_affine_maps
from sfm_matchers.matchers.protocols import Arrays
from sfm_matchers.training import run as training_run
from sfm_matchers.training.data import views
from sfm_matchers.training.data.homographies import HomographyGeometry
from sfm_matchers.training.data.pair_batch import PairBatch, pixel_grid
from sfm_matchers.training.data.photographs import Photographs, load_photographs
from sfm_matchers.training.data.teacher_pairs import (
    RADIUS,
    MatchedPair,
    MatchGeometry,
    TeacherPairs,
    match_geometry,
)
from sfm_matchers.training.losses.supervision import (
    IGNORED,
    cell_truth,
    dual_cross_entropy,
    unmatched_loss,
)
from sfm_matchers.training.options import RunOptions, TrainingOptions
from sfm_matchers.training.schedule import sample_scheduled_pairs
from sfm_matchers.training.tasks.efficient_loftr import EfficientLoFTRTask
from sfm_matchers.training.tasks.jamma import JamMaTask
from sfm_matchers.training.teacher import (
    MIN_INLIERS,
    SparseTeacher,
    fitted_matches,
    load_teacher_pairs,
)

CPU = torch.device("cpu")
PHOTO = (400, 300)  # width and height
SIZE = (96, 128)  # height and width of the images of a batch
# From photograph 0 to photograph 1: a turn, a change of scale, a little perspective.
TURN = np.array([[0.9, -0.2, 40.0], [0.15, 1.0, -10.0], [1e-4, 5e-5, 1.0]])


def _carried(points: np.ndarray) -> np.ndarray:
    mapped = points @ TURN[:, :2].T + TURN[:, 2]
    return np.asarray(mapped[:, :2] / mapped[:, 2:])


def _true_matches(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    points0 = np.random.default_rng(seed).uniform(0, np.array(PHOTO) - 1, (count, 2))
    points1 = _carried(points0)
    inside = ((points1 >= 0) & (points1 <= np.array(PHOTO) - 1)).all(1)
    return points0[inside], points1[inside]


class MadeTeacher:
    """Knows how the photographs were made; a photograph is told by the mean of its blue pixels."""

    def __init__(self) -> None:
        self.matched: list[tuple[float, float]] = []

    def features(self, image: np.ndarray) -> Arrays:
        return {"blue": image[..., 2].mean()}

    def match(self, features0: Arrays, features1: Arrays) -> tuple[np.ndarray, np.ndarray]:
        self.matched.append((float(features0["blue"]), float(features1["blue"])))
        return _true_matches(300)


class NoTeacher(MadeTeacher):
    """Must not be asked."""

    def features(self, image: np.ndarray) -> Arrays:
        raise AssertionError("the photographs are matched already")


def _write_place(folder: Path, blue: int) -> None:
    """Two photographs of one picture; blue tells where."""
    folder.mkdir(parents=True)
    coarse = np.random.default_rng(blue).uniform(0, 255, (12, 16, 3)).astype(np.float32)
    picture = cv2.resize(coarse, PHOTO, interpolation=cv2.INTER_CUBIC).clip(0, 255)
    picture[..., 0] = blue
    other = cv2.warpPerspective(picture, TURN, PHOTO, borderValue=(blue, 0, 0))
    for name, one in (("a.png", picture), ("b.png", other)):
        cv2.imwrite(str(folder / name), one.astype(np.uint8))


@pytest.fixture
def places(tmp_path: Path) -> Path:
    for place, blue in (("church", 20), ("bridge", 200)):
        _write_place(tmp_path / "places" / place, blue)
    return tmp_path / "places"


@pytest.fixture
def taught(places: Path, tmp_path: Path) -> TeacherPairs:
    found = load_teacher_pairs(places, MadeTeacher(), tmp_path / "kept", (), "cpu")
    assert found is not None
    return found


def _geometry(points0: np.ndarray, points1: np.ndarray, *scales: float) -> MatchGeometry:
    """The truth between views of both photographs that are reduced by two scales."""
    linear = local_affine_maps(points0, points1)
    rows = [torch.from_numpy(np.asarray(x, np.float32)) for x in (points0, points1, linear)]
    valid = torch.ones(1, *SIZE, dtype=torch.bool)
    reduced = (torch.diag(torch.tensor([s, s, 1.0], dtype=torch.float64))[None] for s in scales)
    view0, view1 = reduced
    return match_geometry([MatchedPair((0, 1), *rows)], (view0, view1), (valid, valid))


def _homography_geometry(scale0: float, scale1: float) -> HomographyGeometry:
    forward = np.diag([1 / scale1, 1 / scale1, 1]) @ TURN @ np.diag([scale0, scale0, 1])
    valid = torch.ones(1, *SIZE, dtype=torch.bool)
    both = (torch.from_numpy(m).float()[None] for m in (forward, np.linalg.inv(forward)))
    return HomographyGeometry(*both, valid, valid)


def _is_near(points: np.ndarray, scale: float, cells: Tensor) -> Tensor:
    """Which cells have a match within the radius of their point, along both axes."""
    offsets = cells[0, :, None] - torch.from_numpy(points / scale)
    return (offsets.abs().amax(-1) <= RADIUS).any(1)


def test_matches_give_the_cells_of_the_true_homography_and_nothing_else() -> None:
    points0, points1 = _true_matches(80)
    scales = 3.0, 3.2
    found = cell_truth(_geometry(points0, points1, *scales), SIZE, 8, 0.0, CPU)
    true = cell_truth(_homography_geometry(*scales), SIZE, 8, 0.0, CPU)
    cells = pixel_grid(SIZE[0] // 8, SIZE[1] // 8, CPU).reshape(1, -1, 2) * 8
    for labels, expected, points, scale in (
        (found.labels0, true.labels0, points0, scales[0]),
        (found.labels1, true.labels1, points1, scales[1]),
    ):
        known = labels != IGNORED
        assert known.sum() > 25
        assert (labels == expected)[known].float().mean() > 0.97  # half a cell may round either way
        near = _is_near(points, scale, cells)
        assert not known[0, ~near].any()
        assert known[0, near & (expected[0] != IGNORED)].float().mean() > 0.7
    assert not found.unmatched0.any()
    assert not found.unmatched1.any()


@pytest.mark.parametrize("source", [0, 1])
def test_positions_are_exact_to_a_fraction_of_a_pixel(source: int) -> None:
    scales = 3.0, 1.5  # one image is seen at twice the size
    geometry = _geometry(*_true_matches(80), *scales)
    points = pixel_grid(*SIZE, CPU).reshape(1, -1, 2) + 0.25
    warped, known = geometry.warp(points, source)
    expected, _ = _homography_geometry(*scales).warp(points, source)
    assert 100 < known.sum() < 0.6 * known.numel()
    assert (warped - expected)[known].norm(dim=-1).max() < 0.2
    assert warped[~known].isinf().all()


def test_of_several_matches_in_a_cell_the_one_nearest_to_its_middle_counts() -> None:
    far = np.stack(np.meshgrid(np.arange(60.0, 120, 20), np.arange(40.0, 90, 20)), -1).reshape(
        -1, 2
    )
    points0 = np.vstack([far, [[19.0, 16.0], [15.0, 16.0]]])
    points1 = points0 + np.vstack([far * 0, [[2.0, 0.0], [0.0, 3.0]]])
    warped, known = _geometry(points0, points1, 1.0, 1.0).warp(torch.tensor([[[16.0, 16.0]]]), 0)
    assert known.all()
    assert torch.allclose(warped[0, 0], torch.tensor([16.0, 19.0]), atol=0.3)


def test_a_hidden_match_tells_nothing() -> None:
    points0, points1 = _true_matches(200)
    linear = local_affine_maps(points0, points1)
    rows = [torch.from_numpy(np.asarray(x, np.float32)) for x in (points0, points1, linear)]
    view = torch.diag(torch.tensor([3.0, 3, 1], dtype=torch.float64))[None]
    all_seen = torch.ones(1, *SIZE, dtype=torch.bool)
    right_half = all_seen.clone()
    right_half[:, :, :64] = False
    geometry = match_geometry([MatchedPair((0, 1), *rows)], (view, view), (all_seen, right_half))
    points = pixel_grid(*SIZE, CPU).reshape(1, -1, 2)
    warped, known = geometry.warp(points, 0)
    assert known.any()
    assert (warped[known][:, 0] > 63).all()
    _, known_back = geometry.warp(points, 1)
    assert (points[known_back][:, 0] >= 64).all()


def test_unknown_cells_have_no_gradient() -> None:
    truth = cell_truth(_geometry(*_true_matches(80), 3.0, 3.2), SIZE, 8, 0.0, CPU)
    generator = torch.Generator().manual_seed(0)
    count = truth.labels0.shape[1]
    similarity = torch.randn(1, count, count, generator=generator).requires_grad_()
    loss = dual_cross_entropy(similarity, truth.labels0, truth.labels1)
    loss = loss + unmatched_loss(similarity, truth.unmatched0, truth.unmatched1)
    (gradient,) = torch.autograd.grad(loss, similarity)
    unknown0, unknown1 = truth.labels0[0] == IGNORED, truth.labels1[0] == IGNORED
    assert unknown0.sum() > 25
    assert (gradient[0][unknown0][:, unknown1] == 0).all()
    assert (gradient[0][~unknown0] != 0).all()


def test_views_show_the_matches_where_the_truth_says(
    taught: TeacherPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "vary_appearance", lambda images, strength, generator: images)
    batch = taught.sample_pairs(8, SIZE, generator=torch.Generator().manual_seed(1))
    points = pixel_grid(*SIZE, CPU, 3).reshape(1, -1, 2).expand(8, -1, -1)
    warped, known = batch.geometry.warp(points[:1], 0)
    assert known.float().mean() > 0.15
    assert known.any(1).all()
    true, shifted = (
        (_colours(batch.image0, points) - _colours(batch.image1, places)).abs().amax(-1)[known]
        for places in (warped, warped + 6.0)
    )
    assert true.median() < 0.02
    assert shifted.median() > 4 * true.median()


def _colours(images: Tensor, points: Tensor) -> Tensor:
    """Colours (B, N, 3) of (B, 3, H, W) at (B, N, 2) pixels; black where there are none."""
    extent = points.new_tensor([images.shape[3], images.shape[2]])
    grid = (points.nan_to_num(posinf=-1e4) + 0.5) * 2 / extent - 1
    sampled = torch.nn.functional.grid_sample(images, grid[:, None], align_corners=False)
    return sampled[:, :, 0].transpose(1, 2)


def test_a_turned_photograph_is_turned_back(tmp_path: Path) -> None:
    points0 = np.random.default_rng(0).uniform(0, 299, (60, 2))
    points1 = np.stack([299 - points0[:, 1], points0[:, 0]], 1)  # a quarter of a turn
    linear = local_affine_maps(points0, points1)
    rows = [torch.from_numpy(np.asarray(x, np.float32)) for x in (points0, points1, linear)]
    pair = MatchedPair((0, 1), *rows)
    assert pair.quarter_turns == 1
    assert pair.swapped().quarter_turns == 3
    photo = torch.zeros(3, 300, 300, dtype=torch.uint8)
    taught = TeacherPairs(Photographs(["a", "b"], [[photo] * 3, [photo] * 3]), [[pair]])
    geometry = taught.sample_pairs(4, SIZE, generator=torch.Generator().manual_seed(0)).geometry
    assert isinstance(geometry, MatchGeometry)
    mean = geometry.linear[0].mean((0, 1))
    angle = torch.rad2deg(torch.atan2(mean[1, 0] - mean[0, 1], mean[0, 0] + mean[1, 1]))
    assert angle.abs() < 45


def _two_views(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in space, seen by a camera that moves and turns."""
    random = np.random.default_rng(2)
    points = random.uniform([-2, -1.5, 4], [2, 1.5, 8], (count, 3))
    turn, _ = cv2.Rodrigues(np.array([0.05, -0.2, 0.1]))
    seen = (points, points @ turn.T + [1.0, 0.1, 0.2])
    return tuple(500 * one[:, :2] / one[:, 2:] + [400, 300] for one in seen)  # type: ignore[return-value]


def test_wrong_matches_are_dropped() -> None:
    points0, points1 = _two_views(200)
    points1[:40] += np.random.default_rng(3).uniform(20, 60, (40, 2)) * [1, -1]
    kept = fitted_matches(points0, points1)
    assert kept is not None
    where = {tuple(row): index for index, row in enumerate(points0.astype(np.float32).tolist())}
    indices = np.array([where[tuple(row)] for row in kept["points0"].tolist()])
    assert np.count_nonzero(indices < 40) <= 2  # along its epipolar line a match may be anywhere
    assert np.count_nonzero(indices >= 40) == 160


def test_pairs_with_few_or_mostly_wrong_matches_are_dropped() -> None:
    points0, points1 = _two_views(200)
    assert fitted_matches(points0[: MIN_INLIERS - 1], points1[: MIN_INLIERS - 1]) is None
    points1[:120] = np.random.default_rng(4).uniform(0, 600, (120, 2))
    assert fitted_matches(points0, points1) is None


def test_photographs_of_different_places_are_not_matched(places: Path, tmp_path: Path) -> None:
    teacher = MadeTeacher()
    found = load_teacher_pairs(places, teacher, tmp_path / "kept", (), "cpu")
    assert sorted(teacher.matched) == [(20.0, 20.0), (200.0, 200.0)]
    assert found is not None
    assert [[pair.photos for pair in pairs] for pairs in found.places] == [[(0, 1)], [(2, 3)]]


def test_places_that_are_held_out_are_not_used(places: Path, tmp_path: Path) -> None:
    teacher = MadeTeacher()
    load_teacher_pairs(places, teacher, tmp_path / "kept", ("bridge",), "cpu")
    assert teacher.matched == [(20.0, 20.0)]


def test_a_resumed_run_does_not_match_again(
    places: Path, taught: TeacherPairs, tmp_path: Path
) -> None:
    again = load_teacher_pairs(places, NoTeacher(), tmp_path / "kept", (), "cpu")
    assert again is not None
    assert torch.equal(again.places[1][0].linear, taught.places[1][0].linear)
    one, two = (
        pairs.sample_pairs(2, SIZE, generator=torch.Generator().manual_seed(0))
        for pairs in (taught, again)
    )
    assert torch.equal(one.image1, two.image1)

    cv2.imwrite(str(places / "church" / "a.png"), np.full((300, 400, 3), 7, np.uint8))
    teacher = MadeTeacher()
    load_teacher_pairs(places, teacher, tmp_path / "kept", (), "cpu")
    assert teacher.matched == [(7.0, 20.0)]


def test_photographs_that_do_not_match_are_explained(places: Path, tmp_path: Path) -> None:
    class Blind(MadeTeacher):
        def match(self, features0: Arrays, features1: Arrays) -> tuple[np.ndarray, np.ndarray]:
            return np.zeros((0, 2)), np.zeros((0, 2))

    for teacher in (Blind(), NoTeacher()):  # that nothing matches is kept too
        with pytest.raises(InputError, match="give photographs that overlap"):
            load_teacher_pairs(places, teacher, tmp_path / "kept", (), "cpu")


class _Recorder:
    """Stands for the loop; keeps what it would train on."""

    photographs: Photographs
    step = pairs = 0

    def __init__(self, task: Any, options: Any, photographs: Photographs, *others: Any) -> None:
        type(self).photographs = photographs

    def resume(self) -> bool:
        return False

    def run(self, held_out: Photographs, measure: Any) -> None:
        assert held_out.taught is None


@pytest.mark.parametrize("is_there", [True, False])
def test_a_run_goes_on_without_a_teacher_whose_weights_are_absent(
    places: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_there: bool,
) -> None:
    class Absent(MadeTeacher):
        def features(self, image: np.ndarray) -> Arrays:
            raise WeightsError("aliked-n16rot/bundled is missing")

    teacher = MadeTeacher() if is_there else Absent()
    monkeypatch.setattr(training_run, "Trainer", _Recorder)
    monkeypatch.setattr(training_run, "SparseTeacher", lambda device: teacher)
    options = RunOptions(
        "jamma", places, tmp_path / "run", teacher_dir=places, device="cpu", hold_out=["bridge"]
    )
    with caplog.at_level(logging.WARNING):
        training_run.train(options, TrainingOptions(steps=1))
    assert (_Recorder.photographs.taught is not None) == is_there
    warnings = [record.getMessage() for record in caplog.records if "teacher" in record.message]
    expected = ["training without a teacher: aliked-n16rot/bundled is missing"]
    assert warnings == ([] if is_there else expected)


def test_the_teacher_tells_that_its_weights_are_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFM_MATCHERS_OFFLINE", "1")
    monkeypatch.setenv("SFM_MATCHERS_CACHE", str(tmp_path))
    for module in ("registry", "download"):
        monkeypatch.setattr(f"sfm_matchers.weights.{module}.BUNDLED_DIR", tmp_path)
    with pytest.raises(WeightsError):
        SparseTeacher("cpu").features(np.zeros((64, 64, 3), np.uint8))


def test_a_matcher_of_features_has_no_teacher(places: Path, tmp_path: Path) -> None:
    options = RunOptions("mambaglue", places, tmp_path / "run", teacher_dir=places)
    with pytest.raises(InputError, match="leave --teacher_dir out"):
        training_run.train(options, TrainingOptions(steps=1))


def _photographs(taught: TeacherPairs) -> Photographs:
    own = taught.photographs
    return Photographs(own.names, own.pyramids, taught=taught)


@pytest.mark.slow
def test_half_of_the_batches_are_the_teachers(taught: TeacherPairs) -> None:
    photographs = _photographs(taught)
    batches: list[PairBatch] = [
        sample_scheduled_pairs(photographs, 1.0, 0.1, torch.Generator().manual_seed(seed), CPU, 0.0)
        for seed in range(24)
    ]
    kinds = [type(batch.geometry).__name__ for batch in batches]
    assert 7 <= kinds.count("MatchGeometry") <= 17


@pytest.mark.slow
@pytest.mark.usefixtures("uncalibrated")
@pytest.mark.parametrize("task", [JamMaTask(), EfficientLoFTRTask()])
def test_networks_on_images_train_on_them(
    taught: TeacherPairs, task: JamMaTask | EfficientLoFTRTask
) -> None:
    torch.manual_seed(0)
    task.fine_share = 1.0
    network: Any = task.build_network(_photographs(taught), CPU).train()
    batch = taught.sample_pairs(2, SIZE, generator=torch.Generator().manual_seed(0))
    loss, metrics = task.losses(network, batch, 0.2, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    loss.backward()
    assert float(metrics["unmatched_loss"]) == 0
    assert torch.isfinite(metrics["fine_loss"])
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.slow
def test_kept_matches_of_real_photographs_agree_with_their_poses() -> None:
    folder = shared_path("photos/herz_jesus_p8")
    truth = np.load(folder / "gt.npz")
    pairs = ((0, 1), (1, 3), (5, 7))
    chosen = sorted({index for pair in pairs for index in pair})
    loaded = load_photographs(
        folder / "images", [f"{index:04d}.jpg" for index in chosen], max_side=800
    )
    teacher = SparseTeacher("cpu")
    features = {
        index: teacher.features(loaded.pyramids[row][0].permute(1, 2, 0).contiguous().numpy())
        for row, index in enumerate(chosen)
    }
    for first, second in pairs:
        kept = fitted_matches(*teacher.match(features[first], features[second]))
        assert kept is not None
        assert len(kept["points0"]) > 400
        fundamental = _fundamental_matrix(truth, first, second, loaded.size(0)[1])
        errors = sampson_distance(kept["points0"].numpy(), kept["points1"].numpy(), fundamental)
        assert (errors < 1).mean() > 0.95
        assert np.median(errors) < 0.3


def _fundamental_matrix(truth: Any, first: int, second: int, width: int) -> np.ndarray:
    """Of photographs that are reduced to a width."""
    scale = width / truth["size"][first][0]
    reduce = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]])
    to_rays = [np.linalg.inv(reduce @ truth["K"][index]) for index in (first, second)]
    rotation = truth["R"][second] @ truth["R"][first].T
    x, y, z = truth["t"][second] - rotation @ truth["t"][first]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation
    return np.asarray(to_rays[1].T @ essential @ to_rays[0])
