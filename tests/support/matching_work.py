"""Work for the engine of matching: small photos, and matchers that stand in for networks."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from material import photo_fingerprints

from sfm_matchers.confs import DetectorFreeConf
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.matchers.protocols import EncodedImage, Matches
from sfm_matchers.matching import (
    Executor,
    match_images,
)
from sfm_matchers.pairs.policies import exhaustive_pairs

NUM_PHOTOS = 9


class MeanColor:
    """Stands in for a network: matches depend on both photos' pixels, and on nothing else."""

    def __init__(self, seconds: float = 0.0, killer: Path | None = None) -> None:
        self.seconds = seconds
        self.killer = killer

    def encode(self, image: np.ndarray) -> EncodedImage:
        size = (image.shape[1], image.shape[0])
        return EncodedImage(image.reshape(-1, 3).mean(0), (1.0, 1.0), 24, size)

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        time.sleep(self.seconds)
        if self.killer is not None and not self.killer.exists():
            self.killer.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        colors = (image0.features, image1.features)
        points = [np.outer(np.arange(1, 4), color[:2]) for color in colors]
        return Matches(*(p.astype(np.float32) for p in points), np.ones(3, np.float32))


class AlwaysDies(MeanColor):
    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@dataclass
class Work:
    """Nine photos and all their pairs."""

    image_dir: Path
    path: Path
    names: list[str]

    @property
    def pairs(self) -> list[Pair]:
        return exhaustive_pairs(self.names)

    def run(self, executor: Executor, matcher: type = MeanColor, **options: object) -> list[Pair]:
        wanted = photo_fingerprints(self.image_dir, self.names)
        return match_images(
            CONF,
            partial(matcher, **options),
            self.pairs,
            self.image_dir,
            wanted,
            self.path,
            executor=executor,
        )


CONF = DetectorFreeConf("mean", "matches-mean", {"name": "mean"}, max_error=1, cell_size=1)


def content(path: Path) -> dict[str, list]:
    found = {}
    with h5py.File(path) as file:
        for name0 in file:
            for name1 in file[name0]:
                group = file[name0][name1]
                arrays = {key: group[key][()].tolist() for key in group}
                found[f"{name0}/{name1}"] = [group.attrs["fingerprint"], arrays]
    return found
