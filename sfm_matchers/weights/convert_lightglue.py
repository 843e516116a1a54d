"""From a LightGlue checkpoint (Lindenberger et al., ICCV 2023) to MambaGlue's state dict.

MambaGlue contains LightGlue: all but three things are the same tensors under other names.

- The feed-forward network of self-attention is wider: its input is the state, the message of
  attention, and the two of the Mamba branch. LightGlue's columns come first, zeros behind them, so
  that nothing of what the branch says is heard: the branch is *silent*.
- The confidence regressor is a chain of three layers with nothing between them; LightGlue's single
  one becomes a chain of rank one.
- The branch itself has no counterpart. Its weights are drawn as for training from scratch.

The result computes what LightGlue computes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sfm_matchers.errors import WeightsError
from sfm_matchers.networks.mambaglue import MambaGlue, MambaMixer
from sfm_matchers.weights import convert_mambaglue

LIGHTGLUES = "LightGlue's weights in MambaGlue's shape: the Mamba branch is silent"
WRAPPERS = ("module.", "model.", "matcher.", "net.")  # added by training programs
DETECTOR = "extractor."
# Released files number the attention of all layers, training keeps it in layers.
LAYER_NAMES = (
    (r"^(self|cross)_attn\.(\d+)\.", r"transformers.\2.\1_attn."),
    (r"^transformers\.(\d+)\.self_attn\.", r"transformermambas.\1.mamba_selfattn_mixer."),
    (r"^transformers\.(\d+)\.cross_attn\.", r"transformermambas.\1.cross_attn."),
)
UNUSED = (
    r"^confidence_thresholds$",  # a function of the number of layers
    r"^log_assignment\.\d+\.r$",  # in the file for DISK; LightGlue's code does not read it
)
UPDATE_OF_MIXER = r"^(transformermambas\.\d+\.mamba_selfattn_mixer)\.ffn\.0\.weight$"
CONFIDENCE = r"^(token_confidence\.\d+\.token)\.0\.(weight|bias)$"
BRANCH_SEED = 0


def is_lightglue(state_dict: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict is LightGlue's: it has self-attention, and no Mamba beside it."""
    names = [rename(key) for key in state_dict]
    attends = any(name.endswith(".mamba_selfattn_mixer.Wqkv.weight") for name in names)
    return attends and not any("mamba_mixer" in name or "mamba_self_attn" in name for name in names)


def convert(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the matcher's tensors under MambaGlue's names, and those that LightGlue lacks.

    The weights of a detector are dropped.

    Args:
        state_dict: of a released file, or of a checkpoint of the authors' training program.

    Raises:
        WeightsError: a layer is not LightGlue's; the message names the tensor.
    """
    converted: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        name = rename(key)
        if name.startswith(DETECTOR) or any(re.match(pattern, name) for pattern in UNUSED):
            continue
        if mixer := re.match(UPDATE_OF_MIXER, name):
            converted |= {name: _widened(key, tensor), **_branch(mixer[1], tensor)}
        elif confidence := re.match(CONFIDENCE, name):
            converted |= _chain(key, confidence[1], confidence[2], tensor)
        else:
            converted[name] = tensor
    return converted


def convert_either(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return MambaGlue's state dict of a checkpoint of MambaGlue's or LightGlue's.

    Raises:
        WeightsError: it is of neither; the message names a tensor.
    """
    stored = convert(state_dict) if is_lightglue(state_dict) else dict(state_dict)
    return convert_mambaglue.convert(stored)


def remark(network: MambaGlue) -> str:
    """Return what a user must hear of weights: that they are LightGlue's; "" if they are not."""
    return LIGHTGLUES if network.has_silent_branch else ""


def rename(key: str) -> str:
    """Return the name that MambaGlue has for a tensor of LightGlue's."""
    while key.startswith(WRAPPERS):
        key = key.split(".", 1)[1]
    for pattern, name in LAYER_NAMES:
        key = re.sub(pattern, name, key)
    return key


def _widened(key: str, weight: Tensor) -> Tensor:
    """(2 dim, 4 dim): LightGlue's columns, and zeros for the two messages of the Mamba branch."""
    if weight.ndim != 2 or weight.shape[0] != weight.shape[1] or weight.shape[1] % 2:
        raise WeightsError(f"not a LightGlue checkpoint: {key} has shape {tuple(weight.shape)}")
    return torch.cat([weight, torch.zeros_like(weight)], dim=1)


def _branch(mixer: str, weight: Tensor) -> dict[str, Tensor]:
    """Tensors of a Mamba branch as training begins with them, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(BRANCH_SEED)
        branch = MambaMixer(weight.shape[1] // 2)
        branch.reset_parameters()
    return {f"{mixer}.mamba_mixer.{name}": value for name, value in branch.state_dict().items()}


def _chain(key: str, token: str, kind: str, tensor: Tensor) -> dict[str, Tensor]:
    """The regressor's three layers whose product is LightGlue's one; `kind` is weight or bias."""
    if tensor.shape[0] != 1 or tensor.ndim != (2 if kind == "weight" else 1):
        raise WeightsError(f"not a LightGlue checkpoint: {key} has shape {tuple(tensor.shape)}")
    if kind == "bias":  # of the last layer; how many rows the others have, the weight says
        return {f"{token}.2.bias": tensor}
    dim = tensor.shape[1]
    shapes = [(dim // 2, dim), (dim // 4, dim // 2), (1, dim // 4)]
    layers = [tensor.new_zeros(shape) for shape in shapes]
    layers[0][0], layers[1][0, 0], layers[2][0, 0] = tensor[0], 1, 1
    names = {f"{token}.{index}.weight": layer for index, layer in enumerate(layers)}
    return names | {f"{token}.{index}.bias": tensor.new_zeros(shapes[index][0]) for index in (0, 1)}
