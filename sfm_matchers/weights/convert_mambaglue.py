"""From the authors' MambaGlue checkpoint to our state dict.

The released file holds a whole matching pipeline, saved before the authors renamed two modules.
Their own loader misses the renames and accepts missing keys, which leaves all layers random: here
a key that is not understood is an error.
"""

from __future__ import annotations

from torch import Tensor

from sfm_matchers.errors import WeightsError
from sfm_matchers.networks.mambaglue import MambaGlue, MambaGlueConfig, confidence_thresholds

WRAPPERS = ("module.", "model.")  # added by parallel training and by the training framework
DETECTOR = "extractor."
MATCHER = "matcher."
RENAMED = {"transformers.": "transformermambas.", ".mamba_self_attn.": ".mamba_selfattn_mixer."}
THRESHOLDS = "confidence_thresholds"


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict that `networks.mambaglue.MambaGlue` loads strictly.

    The weights of the detector are dropped. The confidence thresholds, which released files lack,
    are a function of the number of layers and computed anew.

    Args:
        state_dict: the `model` entry of the authors' checkpoint, of any of their versions, or one
            saved from our network.

    Raises:
        WeightsError: a key is part of neither the matcher nor the detector; the message names it.
    """
    renamed = {key: _rename(key) for key in state_dict}
    layers = sum(key.endswith(".final_proj.weight") for key in renamed.values())
    known = _parameter_names(layers)
    converted = {}
    for key, tensor in state_dict.items():
        if renamed[key].startswith(DETECTOR):
            continue
        if renamed[key] not in known:
            raise WeightsError(f"not a MambaGlue checkpoint: it holds the key {key!r}")
        converted[renamed[key]] = tensor
    converted[THRESHOLDS] = confidence_thresholds(layers)
    return converted


def _rename(key: str) -> str:
    while key.startswith(WRAPPERS):
        key = key.split(".", 1)[1]
    key = key.removeprefix(MATCHER)
    for old, new in RENAMED.items():
        key = key.replace(old, new)
    return key


def _parameter_names(layers: int) -> set[str]:
    """Names of all tensors a matcher with so many layers can have."""
    if layers == 0:
        return set()
    # Names do not depend on the channels, so a tiny matcher tells them all; ALIKED's has the input
    # projection that others may lack.
    tiny = MambaGlueConfig(features="aliked", num_layers=layers, dim=4, num_heads=1)
    return set(MambaGlue(tiny).state_dict())
