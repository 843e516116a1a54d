"""The Mamba-1 block (Gu and Dao, "Mamba: Linear-Time Sequence Modeling", 2023, section 3.4).

State-dict keys are those of the library mamba-ssm, so its checkpoints load as they are. Sequences
are (..., L, channels) throughout, channels last.

Blocks of equal shape and different weights, one sequence each, run in one call of the selective
scan (`run_side_by_side`): the four scan directions of JamMa. A single block is the case of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfm_matchers.networks.selective_scan import selective_scan


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., channels)."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class MambaMixer(nn.Module):
    """The gated selective state space layer between two projections.

    Args:
        channels: width of the sequence ("d_model").
        states: numbers kept per inner channel, N ("d_state").
        kernel: taps of the causal depthwise convolution ("d_conv").
        expand: inner width over `channels`.
        step_rank: rank of the map to the step sizes; None is channels / 16 ("dt_rank").
    """

    def __init__(
        self,
        channels: int,
        states: int = 16,
        kernel: int = 4,
        expand: int = 2,
        step_rank: int | None = None,
    ) -> None:
        super().__init__()
        inner = expand * channels
        step_rank = step_rank or math.ceil(channels / 16)
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, kernel, groups=inner)
        self.x_proj = nn.Linear(inner, step_rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(step_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.init_weights()

    def init_weights(self, blocks: int = 1) -> None:
        """Draw the weights of a new network (Mamba, section 3.6 and appendix E).

        Steps softplus(dt_proj.bias) are log-uniform in [0.001, 0.1], A is -(1..N), D is 1.

        Args:
            blocks: residual blocks in the network; the output weights are divided by its root.
        """
        with torch.no_grad():
            for linear in (self.in_proj, self.x_proj, self.out_proj):
                nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
            self.out_proj.weight /= math.sqrt(blocks)
            self.conv1d.reset_parameters()
            bound = self.dt_proj.in_features**-0.5
            nn.init.uniform_(self.dt_proj.weight, -bound, bound)
            step = torch.empty_like(self.dt_proj.bias).uniform_(math.log(1e-3), math.log(0.1)).exp()
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus inverted
            states = self.A_log.shape[1]
            self.A_log.copy_(torch.arange(1.0, states + 1).log().expand_as(self.A_log))
            self.D.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, channels) to the same shape."""
        return _mix_side_by_side([self], x[None])[0]


class MambaBlock(nn.Module):
    """x + MambaMixer(RMSNorm(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixer = MambaMixer(channels)
        self.norm = RMSNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, L, channels) to the same shape."""
        return x + self.mixer(self.norm(x))


def run_side_by_side(blocks: Sequence[MambaBlock], x: Tensor) -> Tensor:
    """Apply block g to the sequences x[g].

    Args:
        blocks: G blocks of equal shape.
        x: (G, B, L, channels).

    Returns:
        (G, B, L, channels).
    """
    normed = torch.stack([block.norm(x_g) for block, x_g in zip(blocks, x, strict=True)])
    return x + _mix_side_by_side([block.mixer for block in blocks], normed)


def _mix_side_by_side(mixers: Sequence[MambaMixer], x: Tensor) -> Tensor:
    """Apply mixer g to x[g]; (G, B, L, channels) to the same shape."""
    groups, batch, length, _ = x.shape
    _inner, states = mixers[0].A_log.shape

    def stacked(name: str) -> Tensor:
        return torch.stack([mixer.get_parameter(name) for mixer in mixers])

    def linear(y: Tensor, weight: Tensor) -> Tensor:
        """y[g] weight[g]^T with y (G, B, L, in) and weight (G, out, in)."""
        return (y.flatten(1, 2) @ weight.transpose(1, 2)).unflatten(1, (batch, length))

    # Signal and gate are projected apart, so that each is contiguous for the scan.
    signal_weight, gate_weight = stacked("in_proj.weight").chunk(2, dim=1)
    signal, gate = linear(x, signal_weight), linear(x, gate_weight)
    taps, bias = stacked("conv1d.weight")[:, :, 0], stacked("conv1d.bias")
    signal = F.silu(_causal_depthwise_conv(signal, taps, bias))

    step, B, C = linear(signal, stacked("x_proj.weight")).split(
        (mixers[0].dt_proj.in_features, states, states), dim=-1
    )

    y = selective_scan(
        signal.flatten(0, 1),
        linear(step, stacked("dt_proj.weight")).flatten(0, 1),
        -torch.exp(stacked("A_log").float()),
        B.flatten(0, 1),
        C.flatten(0, 1),
        stacked("D"),
        z=gate.flatten(0, 1),
        delta_bias=stacked("dt_proj.bias"),
    )
    return linear(y.unflatten(0, (groups, batch)), stacked("out_proj.weight"))


def _causal_depthwise_conv(x: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """y[t] = bias + sum over k of taps[k] x[t - (K - 1) + k], with x = 0 before the start.

    One shifted multiply-add per tap: on channels-last data several times faster on a CPU than
    `conv1d`, which would transpose there and back.

    Args:
        x: (G, B, L, channels).
        taps: (G, channels, K).
        bias: (G, channels).
    """
    length, kernel = x.shape[2], taps.shape[-1]
    taps = taps[:, None, None]
    y = torch.addcmul(bias[:, None, None], x, taps[..., -1])
    for delay in range(1, min(kernel, length)):
        y[:, :, delay:].addcmul_(x[:, :, :-delay], taps[..., kernel - 1 - delay])
    return y
