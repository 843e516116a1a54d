"""Two photos through a detector-free matcher, from pixels as stored to matches in them.

    upright -> turn -> encode -> match -> move points -> turn back -> leave out what is masked

Here each step is written once: for `photo_matchers`, which match two photos, for `matching.engine`,
which keeps what it knows of a photo for its other pairs, and for the plugin of hloc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sfm_matchers.confs import DetectorFreePreprocessing
from sfm_matchers.matchers.batching import matches_of_one_size
from sfm_matchers.matchers.looks import first_looks
from sfm_matchers.matchers.overlap import match_overlap
from sfm_matchers.matchers.protocols import (
    DetectorFreeMatcher,
    EncodedImage,
    Matches,
    device_of,
)
from sfm_matchers.matchers.quarter_turns import Look, QuarterTurns, unturned_matches
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

    @property
    def num_bytes(self) -> int:
        """Memory that it holds."""
        return self._image.nbytes + (0 if self.mask is None else self.mask.nbytes)

    def image(self, quarters: int) -> np.ndarray:
        """Return the photo turned by quarters, counter-clockwise, from as it is stored."""
        return turned(self._image, quarters)

    def encode(self, matcher: DetectorFreeMatcher, quarters: int) -> EncodedImage:
        """Encode the photo, turned by quarters from as it is stored."""
        return matcher.encode(self.image(quarters))

    def without_pixels(self) -> Photo:
        """Return what is known of the photo beside its pixels, for a `View`."""
        return Photo(np.broadcast_to(np.uint8(0), self._image.shape), self.upright, self.mask)


@dataclass(frozen=True)
class View:
    """A photo, encoded in one position.

    Attributes:
        encoded: in that position.
        quarters: from the photo as stored to that position.
        photo: as stored; its pixels are looked at again where the conf asks for it.
    """

    encoded: EncodedImage
    quarters: int
    photo: Photo

    @property
    def image(self) -> np.ndarray:
        """The photo in that position."""
        return self.photo.image(self.quarters)


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
        self._matches_overlap = preprocessing.match_overlap
        self._moves_points = preprocessing.least_squares_matching

    def photo(
        self, image: np.ndarray, orientation: int = 1, mask: np.ndarray | None = None
    ) -> Photo:
        """Return a photo, set upright by its EXIF orientation if photos are to be turned."""
        return Photo(image, quarters_to_upright(orientation) if self._turns else 0, mask)

    def match(self, photo0: Photo, photo1: Photo) -> Matches:
        """Match two photos; points are in pixels of the photos as stored."""
        quarters = self.best_turn(
            lambda: self.small(photo0), lambda position: self.small(photo1, position)
        )
        encoded = (self.encode(photo0), self.encode(photo1, quarters))
        views = (self.view(photo0, encoded[0]), self.view(photo1, encoded[1], quarters))
        return next(self.match_views([views]))

    @property
    def needs_pixels(self) -> bool:
        """Are the pixels of photos looked at once they are encoded."""
        return self._matches_overlap or self._moves_points

    def small(self, photo: Photo, quarters: int = 0) -> EncodedImage:
        """Encode a photo small, turned by quarters from upright, for `best_turn`."""
        assert self._turns is not None  # asked for by `best_turn` alone
        return self._turns.encode(photo.image(photo.upright), quarters)

    def best_turn(
        self, small0: Callable[[], EncodedImage], small1: Callable[[int], EncodedImage]
    ) -> int:
        """Return by how many quarters photo 1 is to be turned.

        Args:
            small0: returns photo 0 from `small`, upright.
            small1: returns photo 1 from `small`, turned by quarters; not each is asked for.
        """
        return 0 if self._turns is None else self._turns.best(small0(), small1)

    def look(
        self, small0: Callable[[], EncodedImage], small1: Callable[[int], EncodedImage]
    ) -> Look:
        """Look how two photos lie; arguments as of `best_turn`."""
        assert self._turns is not None  # asked for where photos may be turned
        return self._turns.look(small0(), small1)

    def encode(self, photo: Photo, quarters: int = 0) -> EncodedImage:
        """Encode a photo, turned by quarters from upright."""
        return photo.encode(self.matcher, photo.upright + quarters)

    def view(self, photo: Photo, encoded: EncodedImage, quarters: int = 0) -> View:
        """Return the view of a photo from what `encode` returned of it."""
        return View(encoded, photo.upright + quarters, photo)

    def match_views(self, pairs: Sequence[tuple[View, View]]) -> Iterator[Matches]:
        """Match photos of one size in the network; points are in pixels of the photos as stored."""
        for (view0, view1), matches in zip(pairs, self._matched(pairs), strict=True):
            if self._moves_points:
                # SIFT goes through the same engine, and does without torch.
                from sfm_matchers.matchers.least_squares_matching import least_squares_matching

                device = device_of(self.matcher)
                matches = least_squares_matching(view0.image, view1.image, matches, device)
            yield self._finished(view0, view1, matches)

    def _matched(self, pairs: Sequence[tuple[View, View]]) -> Iterator[Matches]:
        """Match the photos as they were encoded, or what they share of them."""
        encoded = [(view0.encoded, view1.encoded) for view0, view1 in pairs]
        if self._matches_overlap:
            looks = first_looks(self.matcher, encoded)
            for (view0, view1), look in zip(pairs, looks, strict=True):
                yield match_overlap(self.matcher, view0.image, view1.image, look)
        else:
            yield from matches_of_one_size(self.matcher, encoded)

    def _finished(self, view0: View, view1: View, matches: Matches) -> Matches:
        """Turn the matches of a pair back, and leave out what is masked."""
        photos, quarters = (view0.photo, view1.photo), (view0.quarters, view1.quarters)
        matches = unturned_matches(matches, quarters, (photos[0].size, photos[1].size))
        return matches.select(
            inside_mask(matches.keypoints0, photos[0].mask)
            & inside_mask(matches.keypoints1, photos[1].mask)
        )
