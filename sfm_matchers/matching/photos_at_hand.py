"""Photos on their way into a detector-free matcher."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

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


class _Encoded(NamedTuple):
    """Of a photo: encoded small, or whole, after quarter turns from upright by EXIF."""

    is_small: bool
    quarters: int


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
        with self._holding(skipped) as held:
            turn0, from_turn, is_known = self._turns.of(pair)
            frames = held.photos(pair, self._kind)
            turn1 = from_turn
            if not is_known:
                found = self._chain.best_turn(
                    lambda: held.encoded(name0, _Encoded(True, turn0)),
                    lambda turn: held.encoded(name1, _Encoded(True, (from_turn + turn) % 4)),
                )
                turn1 = (from_turn + found) % 4
            whole = (_Encoded(False, turn0), _Encoded(False, turn1))
            encoded = (held.encoded(name0, whole[0]), held.encoded(name1, whole[1]))
            views = (
                self._chain.view(frames[0], encoded[0], turn0),
                self._chain.view(frames[1], encoded[1], turn1),
            )
            frame_keys = ((name0, self._kind), (name1, self._kind))
            needed: tuple[Key, ...] = (*frame_keys, (name0, whole[0]), (name1, whole[1]))
            self.kept.hold(needed)
            self._knows_size = True
            return ReadyPair(pair, views, needed)
        return None

    def look(self, pair: Pair, skipped: dict[str, str]) -> Look | None:
        """Look how the photos of a pair lie; None as of `ready`."""
        with self._holding(skipped) as held:
            held.photos(pair, self._kind)
            look = self._chain.look(
                lambda: held.encoded(pair[0], _Encoded(True, 0)),
                lambda turn: held.encoded(pair[1], _Encoded(True, turn)),
            )
            self._knows_size = True
            return look
        return None

    @contextlib.contextmanager
    def _holding(self, skipped: dict[str, str]) -> Iterator[_Held]:
        """Give what is kept, which stays; the block ends where a photo cannot be read, noted."""
        held = _Held(self.kept, skipped)
        try:
            yield held
        except _SkippedError:
            pass
        finally:
            self.kept.release(held.keys)

    def _computed(self, key: Key) -> Photo | EncodedImage:
        name, what = key
        if what == _PIXELS:
            return self._read(name)
        photo = self._photo(name)
        if what == _FRAME:
            return photo.without_pixels()
        assert isinstance(what, _Encoded)
        encode = self._chain.small if what.is_small else self._chain.encode
        one_at_a_time: FittingBatches[int, EncodedImage] = FittingBatches(
            lambda turns: [encode(photo, turn) for turn in turns], 1, self.kept.shrink
        )
        return next(one_at_a_time.results([what.quarters]))

    def _photo(self, name: str) -> Photo:
        """A photo with its pixels; the last one is at hand though pixels are not kept."""
        if self._kind == _PIXELS:
            return _as_photo(self.kept.get((name, _PIXELS)))
        last = self._last
        if last is None or last[0] != name:
            last = self._last = (name, self._read(name))
        return last[1]

    def _read(self, name: str) -> Photo:
        stored = self._ahead.get(name)
        return self._chain.photo(stored.image, stored.orientation, stored.mask)


class _Held:
    """What is kept of photos, held for one pair.

    Args:
        kept: whose.
        skipped: photos that cannot be read, with the reason; more are noted.
    """

    def __init__(self, kept: Kept[Photo | EncodedImage], skipped: dict[str, str]) -> None:
        self.keys: list[Key] = []
        self._kept, self._skipped = kept, skipped

    def photos(self, pair: Pair, kind: str) -> list[Photo]:
        """Return both photos; of both it is noted where they cannot be read."""
        found = []
        for name in pair:
            with contextlib.suppress(_SkippedError):
                found.append(_as_photo(self._get(name, kind)))
        if len(found) < len(pair):
            raise _SkippedError
        return found

    def encoded(self, name: str, what: _Encoded) -> EncodedImage:
        """Return a photo encoded."""
        value = self._get(name, what)
        assert not isinstance(value, Photo)
        return value

    def _get(self, name: str, what: Hashable) -> Photo | EncodedImage:
        if name in self._skipped:
            raise _SkippedError
        self.keys.append((name, what))
        self._kept.hold(self.keys[-1:])
        try:
            return self._kept.get((name, what))
        except (InputError, OSError) as error:
            self._skipped[name] = str(error)
            raise _SkippedError from error


def _as_photo(value: Photo | EncodedImage) -> Photo:
    assert isinstance(value, Photo)
    return value


class _SkippedError(Exception):
    """A photo cannot be used."""
