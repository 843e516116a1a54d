"""The pairs MambaGlue is trained on, and training that starts from LightGlue's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightglue_weights import CONFIG, DIM, LAYERS, lightglue_state_dict
from posed_photographs import write_posed_photographs
from torch import Tensor

from sfm_matchers.errors import InputError, WeightsError
from sfm_matchers.networks.mambaglue import MambaGlueConfig
from sfm_matchers.synthetic import Camera, camera_path, make_scene
from sfm_matchers.training.data.kept import Kept
from sfm_matchers.training.data.megadepth import PosedPhotographs, load_megadepth
from sfm_matchers.training.data.photographs import Photographs, load_photographs
from sfm_matchers.training.data.sparse_pairs import VIEWS, FeatureSource, SparsePairs
from sfm_matchers.training.loop import Trainer
from sfm_matchers.training.losses.mambaglue import IGNORED, UNMATCHED
from sfm_matchers.training.options import Start, TrainingOptions
from sfm_matchers.training.tasks.mambaglue import MambaGlueTask

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CAMERA = Camera.from_field_of_view(320, 256)
SIFT = MambaGlueConfig(features="sift", num_layers=LAYERS, dim=DIM, keypoint_order="score")


@pytest.fixture(scope="module")
def posed(tmp_path_factory: pytest.TempPathFactory) -> PosedPhotographs:
    """Two photographs of a rendered place, with true depth and poses."""
    folder = tmp_path_factory.mktemp("posed")
    scene = make_scene(seed=3, kind="courtyard", texture_size=256)
    poses = camera_path(scene, count=24)[:2]
    indices = write_posed_photographs(folder, scene, CAMERA, poses)
    return load_megadepth(folder, indices)[0]


@pytest.fixture(scope="module")
def photographs(posed: PosedPhotographs) -> Photographs:
    loaded = load_photographs(posed.folder, ["0.png", "1.png"])
    loaded.posed = posed
    return loaded


@pytest.fixture
def start(tmp_path: Path) -> Path:
    path = tmp_path / "lightglue.pth"
    torch.save(lightglue_state_dict(), path)
    return path


def sift_pairs(kept: Kept | None = None) -> SparsePairs:
    return SparsePairs(FeatureSource("sift"), kept or Kept(), max_turn=0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("number", range(VIEWS))
def test_views_know_where_their_keypoints_lie_in_the_photograph(
    posed: PosedPhotographs, number: int
) -> None:
    scene = posed.scenes[0]
    pairs = sift_pairs()
    photo = pairs.source.extract(_pixels(posed.read(scene, 0)[0]))[0]["keypoints"]
    view = pairs._new_view(posed, scene, 0, number, generator(3))
    distances = torch.cdist(view["places"], photo).amin(1)
    wrong = torch.cdist(view["places"] + 5, photo).amin(1)
    found, by_chance = ((d < 1.0).float().mean() for d in (distances, wrong))
    assert len(view["places"]) > 50
    assert found > 0.3
    assert found > 2 * by_chance


def _pixels(photo: np.ndarray) -> Tensor:
    return torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255


def test_posed_pairs_have_true_matches(posed: PosedPhotographs) -> None:
    batch = sift_pairs().posed_pairs(posed, 4, 200, generator(), CPU)
    assert len(batch) == 4
    assert batch.features0.keypoints.shape[1] <= 200
    true, wrong = [], []
    for pair in range(len(batch)):
        matches = batch.truth.matches0[pair]
        chosen = (matches >= 0).nonzero().flatten()
        descriptors0 = batch.features0.descriptors[pair, chosen]
        descriptors1 = batch.features1.descriptors[pair, matches[chosen]]
        true.append((descriptors0 * descriptors1).sum(1))
        wrong.append((descriptors0 * descriptors1.roll(1, 0)).sum(1))
        back = batch.truth.matches1[pair, matches[chosen]]
        assert torch.equal(back, chosen)
        assert not (matches[~batch.features0.valid[pair]] >= 0).any()
    assert len(torch.cat(true)) > 40
    assert torch.cat(true).median() > torch.cat(wrong).median() + 0.1


def test_pairs_that_share_nothing_have_no_match(posed: PosedPhotographs) -> None:
    batch = sift_pairs().posed_pairs(posed, 2, 100, generator(), CPU).mismatched()
    for truth, features in (
        (batch.truth.matches0, batch.features0),
        (batch.truth.matches1, batch.features1),
    ):
        assert (truth[features.valid] == UNMATCHED).all()
        assert (truth[~features.valid] == IGNORED).all()


def test_the_same_seed_gives_the_same_batch(photographs: Photographs) -> None:
    one, two = (sift_pairs().sample(photographs, 1, 0.5, generator(5), CPU) for _ in range(2))
    assert torch.equal(one.features1.descriptors, two.features1.descriptors)
    assert torch.equal(one.truth.matches0, two.truth.matches0)


def test_what_is_kept_is_made_once_and_read_again(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, Tensor]:
        made.append(1)
        shared = torch.arange(6.0).view(2, 3)
        return {"keypoints": shared, "places": shared}

    kept = Kept(tmp_path / "features")
    first, again = kept.get("view", make), kept.get("view", make)
    later = Kept(tmp_path / "features").get("view", make)
    assert len(made) == 1
    for entry in (again, later):
        assert torch.equal(entry["places"], first["places"])


def test_training_from_lightglue_begins_as_lightglue(photographs: Photographs, start: Path) -> None:
    task = MambaGlueTask(CONFIG, start=Start(start))
    task.pairs.source.name = "sift"  # as many numbers, and no weights are needed
    network = task.build_network(photographs, CPU)
    assert network.has_silent_branch
    assert torch.equal(
        network.log_assignment[1].final_proj.weight,
        lightglue_state_dict()["log_assignment.1.final_proj.weight"],
    )


def test_another_front_end_gets_a_new_input_and_keeps_the_positions(
    photographs: Photographs, start: Path
) -> None:
    task = MambaGlueTask(SIFT, start=Start(start, rate=0.1))
    network = task.build_network(photographs, CPU)
    positions = lightglue_state_dict()["posenc.Wr.weight"]
    assert torch.equal(network.posenc.Wr.weight[:, :2], positions)
    assert not network.posenc.Wr.weight[:, 2:].any()
    rates = task.learning_rates(network)
    assert not any(name.startswith(("input_proj", "posenc")) for name in rates)


def test_what_is_inherited_learns_slowly(
    photographs: Photographs, start: Path, tmp_path: Path
) -> None:
    task = MambaGlueTask(SIFT, start=Start(start, rate=0.01))
    options = TrainingOptions(steps=100, batch_size=1, learning_rate=1e-2, warm_up=0.0)
    trainer = Trainer(task, options, photographs, tmp_path / "run", CPU)
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    trainer.train_step()
    steps = {
        name: (parameter.detach() - before[name]).abs().mean()
        for name, parameter in trainer.network.named_parameters()
    }
    mixer = "transformermambas.0.mamba_selfattn_mixer."
    assert steps["input_proj.weight"] > 10 * steps[mixer + "Wqkv.weight"] > 0
    update = dict(trainer.network.named_parameters())[mixer + "ffn.0.weight"].detach()
    step = (update - before[mixer + "ffn.0.weight"]).abs()
    assert step[:, 2 * DIM :].mean() > 10 * step[:, : 2 * DIM].mean() > 0


def test_staying_close_is_a_distance_to_the_start(
    photographs: Photographs, posed: PosedPhotographs, tmp_path: Path
) -> None:
    first = MambaGlueTask(SIFT)
    network = first.build_network(photographs, CPU)
    path = tmp_path / "start.pth"
    torch.save(network.state_dict(), path)
    batch = first.pairs.posed_pairs(posed, 2, 100, generator(), CPU)
    totals = {}
    for weight in (0.0, 1.0):
        task = MambaGlueTask(SIFT, start=Start(path, stay_close=weight))
        own = task.build_network(photographs, CPU).train()
        totals[weight] = task.losses(own, batch, 0.5, generator())[0]
        if weight:
            with torch.no_grad():
                own.log_assignment[-1].final_proj.weight.zero_()
            changed = task.losses(own, batch, 0.5, generator())[0]
    assert totals[1.0] > totals[0.0]
    assert changed > totals[1.0] + 0.1


def test_a_run_goes_on_with_the_same_start_only(
    photographs: Photographs, start: Path, tmp_path: Path
) -> None:
    options = TrainingOptions(steps=10, batch_size=1)

    def trainer(rate: float) -> Trainer:
        task = MambaGlueTask(SIFT, start=Start(start, rate=rate))
        return Trainer(task, options, photographs, tmp_path / "run", CPU)

    trainer(0.1).save()
    assert trainer(0.1).resume()
    with pytest.raises(InputError, match="give the same options"):
        trainer(0.2).resume()


def test_a_run_may_start_from_the_checkpoint_of_another(
    photographs: Photographs, tmp_path: Path
) -> None:
    options = TrainingOptions(steps=10, batch_size=1)
    first = Trainer(MambaGlueTask(SIFT), options, photographs, tmp_path / "run", CPU)
    first.save()
    path = tmp_path / "run" / "checkpoint.pt"
    network = MambaGlueTask(SIFT, start=Start(path)).build_network(photographs, CPU)
    for name, tensor in first.average.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


def test_damaged_starts_and_checkpoints_are_named(
    photographs: Photographs, start: Path, tmp_path: Path
) -> None:
    options = TrainingOptions(steps=10, batch_size=1)
    trainer = Trainer(MambaGlueTask(SIFT), options, photographs, tmp_path / "run", CPU)
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"\xff\xd8\xff\xe0" * 50)
    with pytest.raises(WeightsError, match=r"a\.jpg: damaged"):
        trainer.load_initial_weights(photo)
    weights = trainer.network.state_dict()
    weights["posenc.Wr.weight"].view(-1)[0] = np.nan
    torch.save(weights, tmp_path / "nan.pt")
    with pytest.raises(WeightsError, match="not finite"):
        trainer.load_initial_weights(tmp_path / "nan.pt")
    with pytest.raises(WeightsError, match="not finite"):
        MambaGlueTask(SIFT, start=Start(tmp_path / "nan.pt")).build_network(photographs, CPU)
    trainer.save()
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"checkpoint\.pt is damaged"):
        trainer.resume()


def test_a_start_of_another_size_is_refused(photographs: Photographs, start: Path) -> None:
    with pytest.raises(InputError, match="another network"):
        MambaGlueTask(
            MambaGlueConfig(features="sift", num_layers=LAYERS, dim=2 * DIM), start=Start(start)
        ).build_network(photographs, CPU)
