"""The optimizer of the training loop: what is a matrix, how far it goes, its state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfm_matchers.training.optimizers import MatrixAndScalarOptimizer, Muon

RATE = 0.01


def _changes(network: nn.Module, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """What one step without weight decay adds to each parameter."""
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for name, parameter in network.named_parameters():
        parameter.grad = gradients.get(name)
    MatrixAndScalarOptimizer(network, RATE, 0.0).step()
    return {name: p.detach() - before[name] for name, p in network.named_parameters()}


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(48, 24), (24, 48)),
        (nn.Conv1d(16, 32, 3), (32, 48)),
        (nn.Conv2d(20, 24, 3), (24, 180)),
    ],
)
def test_every_direction_of_a_matrix_moves_equally(
    layer: nn.Module, shape: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    # Singular values from 1 down to a hundredth.
    left = torch.linalg.qr(torch.randn(shape[0], shape[0], generator=generator))[0]
    right = torch.linalg.qr(torch.randn(shape[1], shape[0], generator=generator))[0]
    gradient = left * torch.logspace(0, -2, shape[0]) @ right.T
    weight = next(layer.parameters())
    change = _changes(layer, {"weight": gradient.view(weight.shape)})["weight"].view(shape)
    size = RATE * 0.2 * max(shape) ** 0.5  # of an orthogonal matrix with the size of AdamW's steps
    values = torch.linalg.svdvals(change) / size
    assert values.min() > 0.5  # Newton-Schulz is that rough
    assert values.max() < 1.5
    assert (change * gradient).sum() < 0


def test_what_mixes_no_channels_is_left_to_adam() -> None:
    depthwise, narrow, norm = nn.Conv1d(32, 32, 16, groups=32), nn.Linear(64, 1), nn.LayerNorm(32)
    network = nn.ModuleList([depthwise, narrow, norm])
    gradients = {
        name: torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        for name, p in network.named_parameters()
    }
    for name, change in _changes(network, gradients).items():
        # AdamW's first step has the same length everywhere.
        torch.testing.assert_close(change, -RATE * gradients[name].sign(), rtol=1e-3, atol=1e-5)


def test_parameters_without_gradient_stay() -> None:
    network = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    changes = _changes(network, {"0.weight": torch.ones(32, 32)})
    assert changes.pop("0.weight").abs().max() > 0
    assert all(change.abs().max() == 0 for change in changes.values())


def test_frozen_parameters_stay() -> None:
    network = nn.Linear(32, 32)
    network.weight.requires_grad_(False)
    changes = _changes(network, {"bias": torch.ones(32)})
    assert changes["weight"].abs().max() == 0
    assert changes["bias"].abs().max() > 0


def test_an_optimizer_goes_on_from_its_state() -> None:
    def trained(stop: bool) -> nn.Module:
        torch.manual_seed(0)
        network = nn.Conv2d(16, 16, 3)
        optimizer = MatrixAndScalarOptimizer(network, RATE, 0.1)
        for step in range(4):
            if stop and step == 2:
                state = optimizer.state_dict()
                optimizer = MatrixAndScalarOptimizer(network, RATE, 0.1)
                optimizer.load_state_dict(state)
            optimizer.set_learning_rate(RATE / (step + 1))
            network.zero_grad()
            network(torch.randn(2, 16, 5, 5)).square().mean().backward()
            optimizer.step()
        return network

    torch.testing.assert_close(trained(True).state_dict(), trained(False).state_dict())


def test_state_of_another_optimizer_is_refused() -> None:
    network = nn.Linear(32, 32)
    with pytest.raises(ValueError, match="another optimizer"):
        MatrixAndScalarOptimizer(network, RATE, 0.0).load_state_dict(
            torch.optim.AdamW(network.parameters()).state_dict()
        )


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (32, 32)])
def test_muon_makes_the_steps_of_torch(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = start.clone(), start.clone()
    muon = Muon([ours], RATE, 0.1)
    expected = torch.optim.Muon([theirs], RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient, gradient.clone()
        muon.step()
        expected.step()
    # torch's are computed in bfloat16.
    assert (ours - theirs).norm() < 0.03 * (theirs - start).norm()
