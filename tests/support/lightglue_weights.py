"""Weights in the layout of LightGlue's checkpoints, small and random."""

from __future__ import annotations

import torch
from torch import Tensor

from sfm_matchers.networks.mambaglue import MambaGlueConfig

DIM, LAYERS, HEADS = 32, 2, 4
CONFIG = MambaGlueConfig(features="aliked", num_layers=LAYERS, dim=DIM, num_heads=HEADS)


def lightglue_state_dict(position_dim: int = 2) -> dict[str, Tensor]:
    """Random tensors with the names and shapes of LightGlue's training checkpoint."""
    torch.manual_seed(3)
    shapes = {
        "input_proj.weight": (DIM, 128),
        "input_proj.bias": (DIM,),
        "posenc.Wr.weight": (DIM // HEADS // 2, position_dim),
    }
    for layer in range(LAYERS):
        own, cross = f"transformers.{layer}.self_attn.", f"transformers.{layer}.cross_attn."
        shapes |= _linear(own + "Wqkv", 3 * DIM, DIM) | _linear(own + "out_proj", DIM, DIM)
        for name in ("to_qk", "to_v", "to_out"):
            shapes |= _linear(cross + name, DIM, DIM)
        for block in (own, cross):
            shapes |= _linear(block + "ffn.0", 2 * DIM, 2 * DIM)
            shapes |= {block + "ffn.1.weight": (2 * DIM,), block + "ffn.1.bias": (2 * DIM,)}
            shapes |= _linear(block + "ffn.3", DIM, 2 * DIM)
        head = f"log_assignment.{layer}."
        shapes |= _linear(head + "matchability", 1, DIM) | _linear(head + "final_proj", DIM, DIM)
        if layer < LAYERS - 1:
            shapes |= _linear(f"token_confidence.{layer}.token.0", 1, DIM)
    return {name: torch.randn(shape) * 0.3 for name, shape in shapes.items()}


def _linear(name: str, outputs: int, inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
