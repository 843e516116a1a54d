"""Photos on their way into a detector-free matcher."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import cast

from sfm_matchers.errors import InputError
from sfm_matchers.files.pair_lists import Pair
from sfm_matchers.matchers.batching import FittingBatches
from sfm_matchers.matchers.pair_matcher import PairMatcher, Photo
from sfm_matchers.matchers.protocols import EncodedImage
from sfm_matchers.matchers.quarter_turns import Look
from sfm_matchers.matching.at_hand import READ_AHEAD, Kept, Key, ReadAhead, ReadyPair
from sfm_matchers.matching.plan import ordered_for_room
from sfm_matchers.matching.turns import Turns

_PIXELS, _FRAME = "pixels", "frame"  # of a photo: as read; what is known beside its pixels
_Get = Callable[[str, Hashable], Photo | EncodedImage]


class PhotosAtHand:
    """Photos on their way into the matcher: read, turned and encoded once for many pairs.

    Args:
        chain: the steps of a pair.
        ahead: reads them.
        limit: bytes to keep.
        turns: how they lie.
    """

    def __init__(self, chain: PairMatcher, ahead: ReadAhead, limit: int, turns: Turns) -> None:
        self._chain, self._ahead, self._turns = chain, ahead, turns
        self._kind = _PIXELS if chain.needs_pixels else _FRAME
        self._last: tuple[str, Photo] | None = None
        self._knows_size = False  # of what a photo takes
        self.kept: Kept[Photo | EncodedImage] = Kept(
            self._computed, lambda value: value.num_bytes, limit
        )

    def in_order(self, pairs: Sequence[Pair], skipped: Mapping[str, str]) -> Iterator[Pair]:
        """Yield the pairs in the order in which they are best made ready."""
        ordered, is_final = list(pairs), False
        self.kept.expect(ordered)
        for index in range(len(ordered)):
            if self._knows_size and not is_final:
                ordered[index:] = ordered_for_room(ordered[index:], self.kept.photos_that_fit())
                self.kept.expect(ordered)
                is_final = True
            self.kept.at(index)
            self._expect(ordered[index : index + READ_AHEAD], skipped)
            yield ordered[index]

    def _expect(self, pairs: Sequence[Pair], skipped: Mapping[str, str]) -> None:
        near = [name for pair in pairs for name in pair if name not in skipped]
        self._ahead.expect([name for name in near if (name, self._kind) not in self.kept])

    def ready(self, pair: Pair, skipped: dict[str, str]) -> ReadyPair | None:
        """Encode both photos of a pair, turned as they are known to lie, or seem to.

        Returns:
            None if one of them cannot be read, which is noted.
        """
        name0, name1 = pair
        with self._getting(skipped) as get:
            turn0, from_turn, is_known = self._turns.of(pair)
            frames = self._frames(pair, get)
            turn1 = from_turn
            if not is_known:
                found = self._chain.best_turn(
                    lambda: cast(EncodedImage, get(name0, ("small", turn0))),
                    lambda turn: cast(EncodedImage, get(name1, ("small", (from_turn + turn) % 4))),
                )
                turn1 = (from_turn + found) % 4
            whole: list[Key] = [(name0, ("whole", turn0)), (name1, ("whole", turn1))]
            encoded = [cast(EncodedImage, get(*key)) for key in whole]
            views = (
                self._chain.view(frames[0], encoded[0], turn0),
                self._chain.view(frames[1], encoded[1], turn1),
            )
            needed = ((name0, self._kind), (name1, self._kind), *whole)
            self.kept.hold(needed)
            self._knows_size = True
            return ReadyPair(pair, views, needed)
        return None

    def look(self, pair: Pair, skipped: dict[str, str]) -> Look | None:
        """Look how the photos of a pair lie; None as of `ready`."""
        with self._getting(skipped) as get:
            self._frames(pair, get)
            look = self._chain.look(
                lambda: cast(EncodedImage, get(pair[0], ("small", 0))),
                lambda turn: cast(EncodedImage, get(pair[1], ("small", turn))),
            )
            self._knows_size = True
            return look
        return None

    def _frames(self, pair: Pair, get: _Get) -> list[Photo]:
        """What is known of both photos; of both it is noted where they cannot be read."""
        found = []
        for name in pair:
            with contextlib.suppress(_SkippedError):
                found.append(cast(Photo, get(name, self._kind)))
        if len(found) < len(pair):
            raise _SkippedError
        return found

    @contextlib.contextmanager
    def _getting(self, skipped: dict[str, str]) -> Iterator[_Get]:
        """Give a `get` whose values stay; the block ends where a photo cannot be read, noted."""
        held: list[Key] = []

        def get(name: str, what: Hashable) -> Photo | EncodedImage:
            if name in skipped:
                raise _SkippedError
            held.append((name, what))
            self.kept.hold(held[-1:])
            try:
                return self.kept.get((name, what))
            except (InputError, OSError) as error:
                skipped[name] = str(error)
                raise _SkippedError from error

        try:
            yield get
        except _SkippedError:
            pass
        finally:
            self.kept.release(held)

    def _computed(self, key: Key) -> Photo | EncodedImage:
        name, what = key
        if what == _PIXELS:
            return self._read(name)
        photo = self._photo(name)
        if what == _FRAME:
            return photo.without_pixels()
        size, quarters = cast(tuple[str, int], what)
        encode = self._chain.small if size == "small" else self._chain.encode
        one_at_a_time: FittingBatches[int, EncodedImage] = FittingBatches(
            lambda turns: [encode(photo, turn) for turn in turns], 1, self.kept.shrink
        )
        return next(one_at_a_time.results([quarters]))

    def _photo(self, name: str) -> Photo:
        """A photo with its pixels; the last one is at hand though pixels are not kept."""
        if self._kind == _PIXELS:
            return cast(Photo, self.kept.get((name, _PIXELS)))
        last = self._last
        if last is None or last[0] != name:
            last = self._last = (name, self._read(name))
        return last[1]

    def _read(self, name: str) -> Photo:
        stored = self._ahead.get(name)
        return self._chain.photo(stored.image, stored.orientation, stored.mask)


class _SkippedError(Exception):
    """A photo cannot be used."""
