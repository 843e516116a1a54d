"""How gradients become updates: matrices turned as a whole, everything else number by number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sfm_matchers.networks.precision import has_fast_bfloat16

MIXING_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
MIN_MATRIX = 16  # rows or columns; with fewer there are few directions to tell apart
MOMENTUM = 0.95
# Of the quintic whose iterates bring singular values between 0 and 1 to between 0.7 and 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)
QUINTIC_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Matrices learned in orthogonal steps (K. Jordan et al., 2024).

    The running mean of a matrix's gradients, with Nesterov's look ahead, is replaced by the nearest
    orthogonal matrix, so that every direction is learned at the same pace. The step is scaled to
    the size of AdamW's (J. Liu et al., 2025, section 2.2).

    `torch.optim.Muon` makes the same steps, but always computes in bfloat16, which takes 37 times
    as long as single precision on a CPU without such arithmetic.

    Args:
        matrices: what is trained, two dimensions each.
        learning_rate: that of AdamW.
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(self, matrices: list[Tensor], learning_rate: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": learning_rate, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the matrices that have a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
                direction = nearest_orthogonal(matrix.grad.lerp(mean, MOMENTUM))
                size = 0.2 * max(matrix.shape) ** 0.5
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-group["lr"] * size)


def nearest_orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonal matrix U V^T of a matrix U S V^T, roughly: what was S is near 1.

    By Newton-Schulz iteration of X <- a X + b (X X^T) X + c (X X^T)^2 X.

    Args:
        matrix: (R, C), float32.

    Returns:
        (R, C), singular values from 0.5 to 1.5 but for those far below the largest; bfloat16 where
        that is fast, float32 elsewhere.
    """
    dtype = torch.bfloat16 if has_fast_bfloat16(matrix.device) else torch.float32
    is_tall = matrix.shape[0] > matrix.shape[1]
    result = (matrix.mT if is_tall else matrix).to(dtype)
    result = result / result.norm().clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(QUINTIC_ITERATIONS):
        gram = result @ result.mT
        result = torch.addmm(result, torch.addmm(gram, gram, gram, beta=b, alpha=c), result, beta=a)
    return result.mT if is_tall else result


class MatrixAndScalarOptimizer:
    """Muon for what mixes channels, AdamW for the rest (biases, norms, depthwise kernels, A).

    One learning rate serves both. A convolution's kernel is a matrix with a row for each of its
    outputs.

    Args:
        network: those of its parameters that require gradients are trained.
        learning_rate: until `set_learning_rate` says another.
        weight_decay: on what has two dimensions or more.
        rates: of some parameters, by name, the share of the learning rate that they have: a number
            or a tensor that broadcasts over the parameter.
    """

    def __init__(
        self,
        network: nn.Module,
        learning_rate: float,
        weight_decay: float,
        rates: Mapping[str, Tensor | float] | None = None,
    ) -> None:
        parameters = dict(network.named_parameters())
        self._rates = [(parameters[name], rate) for name, rate in (rates or {}).items()]
        self._kernels = _mixing_kernels(network)
        # Views: Muon takes matrices only, and what it writes here is the network's.
        self._matrices = [kernel.detach().view(len(kernel), -1) for kernel in self._kernels]
        taken = {id(kernel) for kernel in self._kernels}
        others = [p for p in network.parameters() if p.requires_grad and id(p) not in taken]
        groups = [
            {"params": [p for p in others if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, learning_rate)]
        if self._matrices:
            self._optimizers.append(Muon(self._matrices, learning_rate, weight_decay))

    def set_learning_rate(self, learning_rate: float) -> None:
        """Let the next steps have this learning rate."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

    def step(self) -> None:
        """Update the parameters by their gradients."""
        # An optimizer has one rate for a whole tensor, and its steps do not grow with gradients.
        before = [parameter.detach().clone() for parameter, _ in self._rates]
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.reshape(matrix.shape)
        for optimizer in self._optimizers:
            optimizer.step()
        for (parameter, rate), old in zip(self._rates, before, strict=True):
            parameter.data.copy_(old + (parameter.detach() - old) * rate)

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it is the state of other parameters, or of another optimizer.
        """
        states = state.get("optimizers", [])
        if len(states) != len(self._optimizers):
            raise ValueError("the state of another optimizer")
        for optimizer, one in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict(one)


def _mixing_kernels(network: nn.Module) -> list[Tensor]:
    """The trained weights whose outputs are sums over many inputs: no depthwise kernels."""
    layers = [layer for layer in network.modules() if isinstance(layer, MIXING_LAYERS)]
    kernels = [layer.weight for layer in layers if getattr(layer, "groups", 1) == 1]
    return [
        kernel
        for kernel in dict.fromkeys(kernels)
        if kernel.requires_grad and min(len(kernel), kernel[0].numel()) >= MIN_MATRIX
    ]
