"""The Mamba-1 block."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfm_matchers.networks.mamba import MambaBlock, MambaMixer, RMSNorm, run_side_by_side
from sfm_matchers.networks.selective_scan import selective_scan


def textbook_mixer(mixer: MambaMixer, x: Tensor) -> Tensor:
    """The layer written out with torch's own convolution, one sequence set at a time."""
    signal, gate = mixer.in_proj(x).chunk(2, -1)
    taps = mixer.conv1d.kernel_size[0]
    signal = F.silu(mixer.conv1d(F.pad(signal.transpose(1, 2), (taps - 1, 0))).transpose(1, 2))
    states = mixer.A_log.shape[1]
    rank = mixer.dt_proj.in_features
    step, B, C = mixer.x_proj(signal).split((rank, states, states), -1)
    y = selective_scan(
        signal,
        F.linear(step, mixer.dt_proj.weight),
        -mixer.A_log.exp(),
        B,
        C,
        mixer.D,
        z=gate,
        delta_bias=mixer.dt_proj.bias,
        backend="reference",
    )
    return mixer.out_proj(y)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 40])
def test_mixer_agrees_with_the_textbook_also_in_its_gradients(length: int) -> None:
    torch.manual_seed(length)
    mixer = MambaMixer(16).double()
    x = torch.randn(3, length, 16, dtype=torch.float64, requires_grad=True)
    parameters = [x, *mixer.parameters()]
    outputs, gradients = [], []
    for forward in (mixer, lambda y: textbook_mixer(mixer, y)):
        y = forward(x)
        outputs.append(y)
        gradients.append(torch.autograd.grad(y.square().sum(), parameters))
    torch.testing.assert_close(outputs[0], outputs[1])
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_side_by_side_is_each_block_on_its_own_sequences() -> None:
    torch.manual_seed(0)
    blocks = [MambaBlock(16) for _ in range(3)]
    x = torch.randn(3, 2, 21, 16)
    together = run_side_by_side(blocks, x)
    alone = torch.stack([block(sequence) for block, sequence in zip(blocks, x, strict=True)])
    torch.testing.assert_close(together, alone)


def test_block_is_causal() -> None:
    torch.manual_seed(0)
    block, x = MambaBlock(16), torch.randn(1, 20, 16)
    changed = x.clone()
    changed[:, 12:] += 1
    torch.testing.assert_close(block(x)[:, :12], block(changed)[:, :12])
    assert not torch.allclose(block(x)[:, 12:], block(changed)[:, 12:])


def test_state_dict_has_the_names_of_mamba_ssm() -> None:
    assert list(MambaMixer(256).state_dict()) == [
        "A_log",
        "D",
        "in_proj.weight",
        "conv1d.weight",
        "conv1d.bias",
        "x_proj.weight",
        "dt_proj.weight",
        "dt_proj.bias",
        "out_proj.weight",
    ]


def test_initial_steps_lie_between_a_thousandth_and_a_tenth() -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(256)
    steps = F.softplus(mixer.dt_proj.bias)
    assert steps.min() >= 0.999e-3
    assert steps.max() <= 0.1001
    assert 0.005 < steps.log().mean().exp() < 0.02  # log-uniform: their geometric mean is 0.01
    torch.testing.assert_close(mixer.A_log.exp()[7], torch.arange(1.0, 17.0))


def test_norm_has_unit_mean_square() -> None:
    x = 5 * torch.randn(4, 7, 32) + 3
    torch.testing.assert_close(
        RMSNorm(32)(x).square().mean(-1), torch.ones(4, 7), rtol=0, atol=1e-4
    )
