"""How gradients become updates: matrices turned as a whole, everything else number by number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sfm_matchers.errors import InputError

MIXING_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
SMALLEST_MATRIX = 16  # rows or columns; with fewer there are few directions to tell apart


class MatrixAndScalarOptimizer:
    """Muon for what mixes channels, AdamW for the rest (biases, norms, depthwise kernels, A).

    Muon (K. Jordan et al., 2024) replaces the running mean of a matrix's gradients by the nearest
    orthogonal matrix, so that every direction is learned at the same pace; its step is scaled to
    the size of AdamW's (J. Liu et al., 2025, section 2.2), so that one learning rate serves both.
    A convolution's kernel is a matrix with a row for each of its outputs.

    Args:
        network: those of its parameters that require gradients are trained.
        learning_rate: until `set_learning_rate` says another.
        weight_decay: on what has two dimensions or more.

    Raises:
        InputError: torch has no Muon.
    """

    def __init__(self, network: nn.Module, learning_rate: float, weight_decay: float) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise InputError("training needs torch 2.9 or newer: pip install --upgrade torch")
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
            muon = torch.optim.Muon(
                self._matrices,
                learning_rate,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
            self._optimizers.append(muon)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Let the next steps have this learning rate."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

    def step(self) -> None:
        """Update the parameters by their gradients."""
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.reshape(matrix.shape)
        for optimizer in self._optimizers:
            optimizer.step()

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
        if kernel.requires_grad and min(len(kernel), kernel[0].numel()) >= SMALLEST_MATRIX
    ]
