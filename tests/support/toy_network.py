"""A whole network of one file, as docs/design.md has it under "Adding a matcher".

It matches the brightest pixel of photo 0 with the one of photo 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sfm_matchers.confs import DetectorFreeConf
from sfm_matchers.matchers.protocols import EncodedImage, Matches
from sfm_matchers.networks.table import Network


@dataclass(frozen=True)
class ToyConfig:
    """What may differ between two uses of the same weights."""

    gain: float = 1.0
    precision: str = "float32"


class Toy(nn.Module):
    """Weighs the three colours of each pixel."""

    def __init__(self, config: ToyConfig = ToyConfig()) -> None:
        super().__init__()
        self.config = config
        self.colours = nn.Linear(3, 1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """RGB (H, W, 3) in 0..1 to brightness (H, W)."""
        return self.config.gain * self.colours(image)[..., 0]


def convert(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's state dict."""
    return dict(state_dict)


class ToyMatcher:
    """The toy on photos of any size."""

    batch_size = 1

    def __init__(self, network: Toy, resize_max: int, device: str) -> None:
        self.network, self.resize_max = network.to(device), resize_max
        self.device = torch.device(device)

    @torch.inference_mode()
    def encode(self, image: np.ndarray) -> EncodedImage:
        """See `DetectorFreeMatcher.encode`."""
        return EncodedImage(self.network(torch.from_numpy(image) / 255), (1.0, 1.0), 0)

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        """See `DetectorFreeMatcher.match_encoded`."""
        points = [_brightest(image.features) for image in (image0, image1)]
        return Matches(points[0], points[1], np.ones(1, np.float32))

    def parts_to_compile(self) -> list[nn.Module]:
        """See `CompilableMatcher.parts_to_compile`."""
        return [self.network.colours]


def _brightest(brightness: Tensor) -> np.ndarray:
    row, column = divmod(int(brightness.argmax()), brightness.shape[1])
    return np.array([[column, row]], np.float32)


def load(network: Toy, conf: DetectorFreeConf, device: str) -> ToyMatcher:
    """Make the matcher of a conf."""
    return ToyMatcher(network, conf.preprocessing.resize_max, device)


class ToyGraph(nn.Module):
    """The toy on two images of one size."""

    output_names = ("brightness0", "brightness1")
    size_multiple: ClassVar[int] = 4

    def __init__(self, matcher: ToyMatcher, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = matcher.network, size


class ToyTask:
    """What `pipelines.train` would train."""


def task(options: Any) -> ToyTask:
    """See `networks.table.Network.task`."""
    return ToyTask()


ENTRY = Network(
    name="toy",
    takes="images",
    network="toy_network:Toy",
    config="toy_network:ToyConfig",
    converter="toy_network:convert",
    matcher="toy_network:load",
    graph="toy_network:ToyGraph",
    task="toy_network:task",
    size_multiple=4,
)
