"""What a matcher takes and gives, of whichever network.

Two protocols: a `SparseMatcher` takes keypoints and descriptors, a `DetectorFreeMatcher` takes
images. What either of them may have besides is in protocols of its own, and in `batch_size_of`,
`device_of` and `threads_may_share`, which know what holds of a matcher that does not say.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, np.ndarray]

NamedPair = tuple[str, str]
"""Names of two photos."""

SparseMatches = tuple[np.ndarray, np.ndarray]
"""What `SparseMatcher.match` returns."""


@dataclass(frozen=True)
class Matches:
    """Matched points of two photos, row by row.

    Attributes:
        keypoints0: (M, 2) float32, (x, y) in pixels of photo 0; (0, 0) is the centre of the
            top-left pixel.
        keypoints1: (M, 2) float32, the same in photo 1.
        scores: (M,) float32 in 0..1, larger is surer.
    """

    keypoints0: np.ndarray
    keypoints1: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        """Return how many there are."""
        return f"Matches({len(self)} pairs of points)"

    def select(self, chosen: np.ndarray) -> Matches:
        """Return the matches picked by booleans or indices (M,)."""
        return Matches(self.keypoints0[chosen], self.keypoints1[chosen], self.scores[chosen])


class SparseMatcher(Protocol):
    """Matches between two sets of local features."""

    def match(self, features0: Arrays, features1: Arrays) -> SparseMatches:
        """Match two images' features, given as the datasets of a feature file.

        Returns:
            ``matches0`` (N0,) int32, the index in image 1 or -1, and ``matching_scores0`` (N0,)
            float32, 0 where unmatched.
        """


@runtime_checkable
class SparseBatchMatcher(SparseMatcher, Protocol):
    """A sparse matcher that is faster with several pairs at once; results are the same."""

    batch_size: int

    def match_batch(self, pairs: Sequence[tuple[Arrays, Arrays]]) -> list[SparseMatches]:
        """Do what `match` does for each pair."""


@runtime_checkable
class EarlyExitMatcher(SparseBatchMatcher, Protocol):
    """A sparse matcher that runs fewer layers on easy pairs.

    Attributes:
        layers_run: for each pair of the last batch, the layers that it took.
    """

    @property
    def layers_run(self) -> list[int]: ...


@runtime_checkable
class SparseListMatcher(SparseMatcher, Protocol):
    """A sparse matcher that keeps what it computes of a photo; results are the same."""

    def match_list(
        self, pairs: Sequence[NamedPair], features_of: Callable[[str], Arrays]
    ) -> Iterator[tuple[NamedPair, SparseMatches]]:
        """Do what `match` does for each pair of a list; not always in its order."""


@dataclass(frozen=True)
class EncodedImage:
    """What a detector-free network knows of one image alone; reused over the image's pairs.

    Attributes:
        features: the network's own features, tensors on the matcher's device.
        scale: photo's size over the size the network saw, (x, y); for `images.to_original`.
        num_bytes: memory held by the features.
        network_size: (width, height) that the network saw; only for `DetectorFreeBatchMatcher`.
    """

    features: Any
    scale: tuple[float, float]
    num_bytes: int
    network_size: tuple[int, int] | None = None


class DetectorFreeMatcher(Protocol):
    """Matches between two images."""

    def encode(self, image: np.ndarray) -> EncodedImage:
        """Compute the part that depends on one photo, RGB (H, W, 3) uint8."""

    def match_encoded(self, image0: EncodedImage, image1: EncodedImage) -> Matches:
        """Match two encoded photos."""


@dataclass(frozen=True)
class CoarseLook:
    """Two photos, matched no finer than cell by cell.

    Attributes:
        matches: of the points that stand for the cells, in pixels of the photos.
        cell: side of a cell in pixels of the photos; 0 where the points are exact already.
        refined: computes the matches proper.
    """

    matches: Matches
    cell: float
    refined: Callable[[], Matches]


@runtime_checkable
class CoarseToFineMatcher(DetectorFreeMatcher, Protocol):
    """A detector-free matcher that can leave out its fine stage, which costs half the time."""

    def look(self, pairs: Sequence[tuple[EncodedImage, EncodedImage]]) -> list[CoarseLook]:
        """Match encoded photos coarsely, whose `network_size` is the same in all pairs."""


@runtime_checkable
class ResizingMatcher(DetectorFreeMatcher, Protocol):
    """A detector-free matcher that can be told at what size to see photos.

    Attributes:
        resize_max: pixels; photos with a longer side are reduced by `encode`.
    """

    resize_max: int


def that_sees_at(matcher: ResizingMatcher, resize_max: int) -> ResizingMatcher:
    """Return a matcher with the same network that sees photos at another size."""
    other = copy.copy(matcher)
    other.resize_max = resize_max
    return other


@runtime_checkable
class DetectorFreeBatchMatcher(DetectorFreeMatcher, Protocol):
    """A detector-free matcher that is faster with several pairs at once; results are the same."""

    batch_size: int

    def match_batch(self, pairs: Sequence[tuple[EncodedImage, EncodedImage]]) -> list[Matches]:
        """Match encoded photos, whose `network_size` is the same in all pairs."""


@runtime_checkable
class SharedMatcher(Protocol):
    """A matcher of either kind that says whether several threads may use it at once."""

    is_thread_safe: bool


@runtime_checkable
class PlacedMatcher(Protocol):
    """A matcher of either kind that says where it computes."""

    @property
    def device(self) -> torch.device | str: ...


Matcher = SparseMatcher | DetectorFreeMatcher


def batch_size_of(matcher: Matcher) -> int:
    """Return how many pairs a matcher is given at once."""
    if isinstance(matcher, SparseBatchMatcher | DetectorFreeBatchMatcher):
        return matcher.batch_size
    return 1


def device_of(matcher: Matcher) -> str:
    """Return the torch device of a matcher; one that does not say works on the CPU."""
    return str(matcher.device) if isinstance(matcher, PlacedMatcher) else "cpu"


def threads_may_share(matcher: Matcher) -> bool:
    """Return whether several threads may use a matcher at once; not if it does not say."""
    return isinstance(matcher, SharedMatcher) and matcher.is_thread_safe


@runtime_checkable
class CompilableMatcher(Protocol):
    """A matcher of either kind whose network can be compiled."""

    network: torch.nn.Module
    device: torch.device

    def parts_to_compile(self) -> list[torch.nn.Module]:
        """Return the parts in which the network spends its time on this device."""
