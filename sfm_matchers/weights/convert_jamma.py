"""From the authors' JamMa checkpoint to our state dict."""

from __future__ import annotations

from torch import Tensor

from sfm_matchers.errors import WeightsError

# The authors wrap encoder and matcher in one module with these two attributes; JamMa's own
# parameters have the same names here, so a checkpoint of theirs and one of ours look alike.
PREFIXES = ("backbone.", "matcher.")


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict that `networks.jamma.JamMa` loads strictly.

    Args:
        state_dict: the authors' `state_dict` (188 tensors), or one saved from our network.

    Raises:
        WeightsError: a key belongs neither to the encoder nor to the matcher.
    """
    for key in state_dict:
        if not key.startswith(PREFIXES):
            raise WeightsError(f"not a JamMa checkpoint: it holds the key {key!r}")
    return dict(state_dict)
