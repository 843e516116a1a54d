"""The one table of this package's networks; a new one is a file and an entry here.

An entry says by "module:name" where the parts of a network are. It imports none of them: rooms that
know those parts `resolve` them when they need one.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Network:
    """What the package has to know of a network.

    Attributes:
        name: in confs, names of checkpoints, commands.
        takes: what it matches.
        network: class; takes its config.
        config: dataclass of what may differ between two uses of the same weights.
        converter: function from anyone's state dict to the network's.
        matcher: function ``(network, conf, device)`` -> `SparseMatcher` or `DetectorFreeMatcher`.
        graph: class of the ONNX graph, made of the matcher and the size of its inputs; "": none.
        task: function of `TaskOptions` -> `TrainingTask`; "": it cannot be trained here.
        fine_task: the same, to train what follows the coarse matches alone.
        fused_key: part of the names of tensors that only the form for inference has, which the
            network's ``fuse`` makes; "": there is one form.
        remark: function of the network with its weights -> what a user must hear of them, or "".
        gray: whether images are gray, not RGB.
        size_multiple: pixels; sides of images are multiples of it.
        front_ends: whose features it takes, each with weights of its own; the first by default.
    """

    name: str
    takes: Literal["images", "features"]
    network: str
    config: str
    converter: str
    matcher: str
    graph: str = ""
    task: str = ""
    fine_task: str = ""
    fused_key: str = ""
    remark: str = ""
    gray: bool = False
    size_multiple: int = 1
    front_ends: tuple[str, ...] = ()

    def features(self, asked: object = None) -> str | None:
        """Return the front-end that weights are for, ``asked`` or the default; None for images."""
        return str(asked or self.front_ends[0]) if self.front_ends else None


def resolve(reference: str) -> Any:
    """Import what a "module:name" of the table means."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


_ENTRIES = (
    Network(
        name="jamma",
        takes="images",
        network="sfm_matchers.networks.jamma:JamMa",
        config="sfm_matchers.networks.jamma:JamMaConfig",
        converter="sfm_matchers.weights.convert_jamma:convert",
        matcher="sfm_matchers.matchers.jamma:load",
        graph="sfm_matchers.onnx.graphs:JamMaGraph",
        task="sfm_matchers.training.tasks.jamma:task",
        fine_task="sfm_matchers.training.tasks.jamma:fine_task",
        size_multiple=16,
    ),
    Network(
        name="eloftr",
        takes="images",
        network="sfm_matchers.networks.efficient_loftr:EfficientLoFTR",
        config="sfm_matchers.networks.efficient_loftr:EfficientLoFTRConfig",
        converter="sfm_matchers.weights.convert_efficient_loftr:convert",
        matcher="sfm_matchers.matchers.efficient_loftr:load",
        graph="sfm_matchers.onnx.graphs:EfficientLoFTRGraph",
        task="sfm_matchers.training.tasks.efficient_loftr:task",
        fused_key="rbr_reparam",
        gray=True,
        size_multiple=32,
    ),
    Network(
        name="mambaglue",
        takes="features",
        network="sfm_matchers.networks.mambaglue:MambaGlue",
        config="sfm_matchers.networks.mambaglue:MambaGlueConfig",
        converter="sfm_matchers.weights.convert_lightglue:convert_either",
        matcher="sfm_matchers.matchers.mambaglue:load",
        graph="sfm_matchers.onnx.graphs:MambaGlueGraph",
        task="sfm_matchers.training.tasks.mambaglue:task",
        remark="sfm_matchers.weights.convert_lightglue:remark",
        front_ends=("superpoint", "aliked", "disk", "sift"),
    ),
)

NETWORKS = {entry.name: entry for entry in _ENTRIES}
