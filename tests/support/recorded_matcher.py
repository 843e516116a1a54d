"""A detector-free matcher that plays back recorded matches, installed by an entry point.

It stands in for a network where a test is about what is made of the matches. The matcher sees
pixels only, so each photo carries its number in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import entry_points
import numpy as np
import pytest

from sfm_matchers.matchers.protocols import EncodedImage, Matches
from sfm_matchers.matchers.registry import PLUGINS

Correspondences = tuple[np.ndarray, np.ndarray, np.ndarray]

IMAGE_SIZE = (640, 480)


class RecordedMatcher:
    """Points and scores of each pair (name0, name1), in the order of the photos' numbers."""

    names: ClassVar[list[str]] = []
    recorded: ClassVar[dict[tuple[str, str], Correspondences]] = {}
    calls: ClassVar[list[tuple[str, str]]] = []

    def encode(self, image: np.ndarray) -> EncodedImage:
        return EncodedImage(self.names[int(image[0, 0, 0])], (1.0, 1.0), 0)

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        pair = (image0.features, image1.features)
        self.calls.append(pair)
        return Matches(*self.recorded[pair])


def load(*_: Any) -> RecordedMatcher:
    """What the entry point names."""
    return RecordedMatcher()


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, names: Sequence[str]) -> Path:
    """Install the matcher and write one photo for each name; return their folder."""
    entries = {"recorded": f"{__name__}:load"}
    entry_points.install(monkeypatch, folder / "site-packages", PLUGINS, entries)
    monkeypatch.setattr(RecordedMatcher, "names", list(names))
    monkeypatch.setattr(RecordedMatcher, "calls", [])
    for number, name in enumerate(names):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((*IMAGE_SIZE[::-1], 3), number, np.uint8)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return folder / "images"


def record(
    monkeypatch: pytest.MonkeyPatch, recorded: Mapping[tuple[str, str], Correspondences]
) -> None:
    """Set the matches that are played back."""
    monkeypatch.setattr(RecordedMatcher, "recorded", dict(recorded))


def write_conf(path: Path, max_error: float = 1, cell_size: float = 1) -> Path:
    """Write a conf of the matcher."""
    path.write_text(
        "kind: detector_free\noutput: matches-recorded\nmodel: {name: recorded}\n"
        f"max_error: {max_error}\ncell_size: {cell_size}\n"
    )
    return path
