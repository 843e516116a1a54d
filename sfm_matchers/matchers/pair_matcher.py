"""Two photos through a detector-free matcher, from pixels as stored to matches in them.

    upright -> turn -> encode -> match -> look closer -> turn back -> leave out what is masked

Here each step is written once: for `photo_matchers`, which match two photos, for `matching.engine`,
which keeps what it knows of a photo for its other pairs, and for the plugin of hloc.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfm_matchers.confs import DetectorFreePreprocessing
from sfm_matchers.matchers.closer_looks import closer_looks
from sfm_matchers.matchers.protocols import (
    DetectorFreeBatchMatcher,
    DetectorFreeMatcher,
    EncodedImage,
    Matches,
)
from sfm_matchers.matchers.quarter_turns import QuarterTurns, unturned_matches
from sfm_matchers.photos.images import quarters_to_upright
from sfm_matchers.photos.masks import inside_mask
from sfm_matchers.photos.resizing import turned


class Photo:
    """A photo as stored.

    Args:
        image: RGB (H, W, 3) uint8.
        upright: quarters, counter-clockwise, that set it upright, as far as is known.
        mask: (H, W) bool, False where matches are left out; None: nowhere.
    """

    def __init__(self, image: np.ndarray, upright: int = 0, mask: np.ndarray | None = None) -> None:
        self._image, self.upright, self.mask = image, upright, mask

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self._image.shape[1], self._image.shape[0]

    def image(self, quarters: int) -> np.ndarray:
        """Return the photo turned by quarters, counter-clockwise, from as it is stored."""
        return turned(self._image, quarters)

    def encode(self, matcher: DetectorFreeMatcher, quarters: int) -> EncodedImage:
        """Encode the photo, turned by quarters from as it is stored."""
        return matcher.encode(self.image(quarters))


@dataclass(frozen=True)
class View:
    """A photo, encoded in one position.

    Attributes:
        encoded: in that position.
        quarters: from the photo as stored to that position.
        size: (width, height) as stored.
        mask: as the photo is stored.
        image: RGB in that position, if it is to be looked at again.
    """

    encoded: EncodedImage
    quarters: int
    size: tuple[int, int]
    mask: np.ndarray | None
    image: np.ndarray | None

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""
        return self.encoded.num_bytes + (0 if self.image is None else self.image.nbytes)


class PairMatcher:
    """The steps from two photos to their matches.

    Args:
        matcher: of images.
        preprocessing: which of the steps are wanted.

    Raises:
        InputError: ``quarter_turns`` is wanted of a matcher without ``resize_max``.
    """

    def __init__(
        self, matcher: DetectorFreeMatcher, preprocessing: DetectorFreePreprocessing
    ) -> None:
        self.matcher = matcher
        self._turns = QuarterTurns(matcher) if preprocessing.quarter_turns else None
        self._looks = closer_looks(matcher, preprocessing)

    def photo(
        self, image: np.ndarray, path: Path | None = None, mask: np.ndarray | None = None
    ) -> Photo:
        """Return a photo that is set upright, if photos are to be turned and its file tells how."""
        is_turned = self._turns is not None and path is not None
        return Photo(image, quarters_to_upright(path) if path and is_turned else 0, mask)

    def match(self, photo0: Photo, photo1: Photo) -> Matches:
        """Match two photos; points are in pixels of the photos as stored."""
        quarters = 0
        if self._turns is not None:
            upright = (photo.image(photo.upright) for photo in (photo0, photo1))
            quarters = self._turns.between(*upright)
        return next(self.match_views([(self.view(photo0), self.view(photo1, quarters))]))

    def positions(self, photo: Photo) -> tuple[EncodedImage, ...]:
        """Encode a photo small in all positions, for `best_turn`; () if none is to be turned."""
        if self._turns is None:
            return ()
        return tuple(self._turns.positions(photo.image(photo.upright)))

    def best_turn(
        self, positions0: Sequence[EncodedImage], positions1: Sequence[EncodedImage]
    ) -> int:
        """Return by how many quarters photo 1 is to be turned, from the `positions` of both."""
        return 0 if self._turns is None else self._turns.best(positions0[0], positions1)

    def view(self, photo: Photo, quarters: int = 0) -> View:
        """Encode a photo, turned by quarters from upright."""
        turn = photo.upright + quarters
        image = photo.image(turn) if self._looks else None
        return View(photo.encode(self.matcher, turn), turn, photo.size, photo.mask, image)

    def match_views(self, pairs: Sequence[tuple[View, View]]) -> Iterator[Matches]:
        """Match photos of one size in the network; points are in pixels of the photos as stored."""
        encoded = [(view0.encoded, view1.encoded) for view0, view1 in pairs]
        if isinstance(self.matcher, DetectorFreeBatchMatcher):
            found = self.matcher.match_batch(encoded)
        else:
            found = [self.matcher.match_encoded(*both) for both in encoded]
        for (view0, view1), matches in zip(pairs, found, strict=True):
            yield self._finished(view0, view1, matches)

    def _finished(self, view0: View, view1: View, matches: Matches) -> Matches:
        """Look closer at a pair, turn it back, and leave out what is masked."""
        if view0.image is not None and view1.image is not None:
            for look_closer in self._looks:
                matches = look_closer(view0.image, view1.image, matches)
        quarters, sizes = (view0.quarters, view1.quarters), (view0.size, view1.size)
        matches = unturned_matches(matches, quarters, sizes)
        return matches.select(
            inside_mask(matches.keypoints0, view0.mask)
            & inside_mask(matches.keypoints1, view1.mask)
        )
