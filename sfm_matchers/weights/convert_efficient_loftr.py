"""From the checkpoints of Efficient LoFTR to our state dict.

Three layouts are understood: the authors' (ours, behind the prefix `matcher.`), the fused form of
either, and that of the library transformers (`zju-community/efficientloftr` on the Hugging Face
hub), which has the same tensors under other names.
"""

from __future__ import annotations

import re

from torch import Tensor

from sfm_matchers.errors import WeightsError

PREFIX = "matcher."
TRANSFORMERS_PREFIXES = ("efficientloftr.", "model.")  # newer and older releases
OWN = ("backbone.", "loftr_coarse.", "fine_preprocess.")

# Applied in this order to a key of transformers without its prefix.
TRANSFORMERS_NAMES = (
    (r"^backbone\.stages\.0\.blocks\.0\.", r"backbone.layer0."),
    (r"^backbone\.stages\.(\d+)\.blocks\.", r"backbone.layer\1."),
    (r"\.conv1\.conv\.", r".rbr_dense.conv."),
    (r"\.conv1\.norm\.", r".rbr_dense.bn."),
    (r"\.conv2\.conv\.", r".rbr_1x1.conv."),
    (r"\.conv2\.norm\.", r".rbr_1x1.bn."),
    (r"^(backbone\..*)\.identity\.", r"\1.rbr_identity."),
    (r"\.aggregation\.q_aggregation\.", r".aggregate."),
    (r"\.aggregation\.norm\.", r".norm1."),
    (r"\.attention\.o_proj\.", r".merge."),
    (r"\.attention\.([qkv]_proj)\.", r".\1."),
    (r"\.mlp\.fc1\.", r".mlp.0."),
    (r"\.mlp\.fc2\.", r".mlp.2."),
    (r"\.mlp\.layer_norm\.", r".norm2."),
    (r"^refinement_layer\.out_conv\.", r"fine_preprocess.layer3_outconv."),
    (r"\.out_conv1\.", r"_outconv."),
    (r"\.out_conv2\.", r"_outconv2.0."),
    (r"\.batch_norm\.", r"_outconv2.1."),
    (r"\.out_conv3\.", r"_outconv2.3."),
)


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict that `networks.efficient_loftr.EfficientLoFTR` loads strictly.

    Args:
        state_dict: the tensors of any of the layouts above, in training or fused form.

    Raises:
        WeightsError: a key belongs to none of the layouts; the message names it.
    """
    converted = {}
    for key, tensor in state_dict.items():
        renamed = _rename(key)
        if not renamed.startswith(OWN):
            raise WeightsError(f"not an Efficient LoFTR checkpoint: it holds the key {key!r}")
        converted[renamed] = tensor
    return converted


def _rename(key: str) -> str:
    if key.startswith(PREFIX):
        return key.removeprefix(PREFIX)
    for prefix in TRANSFORMERS_PREFIXES:
        key = key.removeprefix(prefix)
    for pattern, name in TRANSFORMERS_NAMES:
        key = re.sub(pattern, name, key)
    key = re.sub(
        r"^local_feature_transformer\.layers\.(\d+)\.(self|cross)_attention\.", _attention, key
    )
    return re.sub(r"^refinement_layer\.out_conv_layers\.(\d+)", _fusion, key)


def _attention(match: re.Match[str]) -> str:
    """transformers counts pairs of self and cross attention, the authors single layers."""
    return f"loftr_coarse.layers.{2 * int(match[1]) + (match[2] == 'cross')}."


def _fusion(match: re.Match[str]) -> str:
    """transformers counts the fusion from coarse to fine, the authors by scale: 2, then 1."""
    return f"fine_preprocess.layer{2 - int(match[1])}"
