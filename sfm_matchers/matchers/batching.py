"""Tensors of several pairs in one batch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from sfm_matchers.errors import NotEnoughMemoryError
from sfm_matchers.machine.memory import free_cached_gpu_memory
from sfm_matchers.matchers.protocols import (
    DetectorFreeBatchMatcher,
    DetectorFreeMatcher,
    EncodedImage,
    Matches,
)
from sfm_matchers.photos.resizing import to_original

if TYPE_CHECKING:  # SIFT goes through the same engine, and does without
    import torch

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH_SIZE_GPU = 8  # pairs


def batch_size_on(device: torch.device) -> int:
    """How many pairs to match at once: a CPU gains nothing by more than one."""
    return 1 if device.type == "cpu" else BATCH_SIZE_GPU


def is_out_of_memory(error: BaseException) -> bool:
    """Has memory not sufficed: a GPU's, or that of the CPU, of torch or of numpy."""
    of_torch = getattr(sys.modules.get("torch"), "OutOfMemoryError", MemoryError)
    if isinstance(error, (of_torch, MemoryError)):
        return True
    # torch's allocator for CPUs, and those of other devices, have no error of their own.
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "not enough memory" in text or "can't allocate memory" in text or "out of memory" in text
    )


class FittingBatches(Generic[Item, Result]):
    """Batches that become smaller when memory does not suffice.

    Args:
        run: computes the results of some items, as many as there are items.
        size: items of a batch, to begin with.
        make_room: frees memory where it does not suffice for one item.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Iterable[Result]],
        size: int,
        make_room: Callable[[], None] = lambda: None,
    ) -> None:
        self.size = size
        self._run, self._make_room = run, make_room

    def results(self, items: Sequence[Item]) -> Iterator[Result]:
        """Return the results of items, which are run in batches of `size`.

        Raises:
            NotEnoughMemoryError: it does not suffice for one.
        """
        done, is_last_try = 0, False
        while done < len(items):
            batch = items[done : done + self.size]
            found = self._tried(batch)
            if found is not None:
                yield from found
                done, is_last_try = done + len(batch), False
                continue
            if len(batch) > 1:
                self.size = len(batch) // 2
                logger.warning(
                    "memory does not suffice for %d pairs at once: now %d at once",
                    len(batch),
                    self.size,
                )
            elif is_last_try:
                raise NotEnoughMemoryError(
                    "memory does not suffice for one pair: use fewer --workers, a smaller "
                    "--max_image_size, or --device cpu. What is done is kept"
                )
            else:
                is_last_try = True
                self._make_room()
            free_cached_gpu_memory()

    def _tried(self, batch: Sequence[Item]) -> list[Result] | None:
        """None if memory does not suffice. What was computed until then is gone on return."""
        try:
            return list(self._run(batch))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None


def matches_of_one_size(
    matcher: DetectorFreeMatcher, pairs: Sequence[tuple[EncodedImage, EncodedImage]]
) -> list[Matches]:
    """Match encoded photos whose sizes are the same in all pairs, at once if the matcher can."""
    if isinstance(matcher, DetectorFreeBatchMatcher):
        return matcher.match_batch(pairs)
    return [matcher.match_encoded(*pair) for pair in pairs]


def match_encoded_pairs(
    matcher: DetectorFreeMatcher, pairs: Sequence[tuple[EncodedImage, EncodedImage]]
) -> list[Matches]:
    """Match encoded photos of any sizes, those of equal sizes at once where that is faster."""
    if not isinstance(matcher, DetectorFreeBatchMatcher) or matcher.batch_size == 1:
        return [matcher.match_encoded(*pair) for pair in pairs]
    groups: dict[object, list[int]] = {}
    for index, pair in enumerate(pairs):
        groups.setdefault(tuple(image.network_size for image in pair), []).append(index)
    found: dict[int, Matches] = {}
    batches = FittingBatches(matcher.match_batch, matcher.batch_size)
    for indices in groups.values():
        results = batches.results([pairs[index] for index in indices])
        found.update(zip(indices, results, strict=True))
    return [found[index] for index in range(len(pairs))]


def stack_features(features: Sequence[Iterable[torch.Tensor]]) -> list[torch.Tensor]:
    """Put the tensors (1, ...) of several images together; those of one stay as they are."""
    import torch

    parts = zip(*features, strict=True)
    return [part[0] if len(part) == 1 else torch.cat(part) for part in parts]


def split_matches(
    batch_ids: torch.Tensor,
    keypoints0: torch.Tensor,
    keypoints1: torch.Tensor,
    scores: torch.Tensor,
    pairs: Sequence[tuple[EncodedImage, EncodedImage]],
) -> list[Matches]:
    """The matches (N,) of each pair of a batch, in pixels of the photos."""
    import torch

    counts = torch.bincount(batch_ids, minlength=len(pairs)).tolist()
    parts = (tensor.float().cpu().split(counts) for tensor in (keypoints0, keypoints1, scores))
    return [
        Matches(
            to_original(points0.numpy(), image0.scale),
            to_original(points1.numpy(), image1.scale),
            scores_of_pair.numpy(),
        )
        for (image0, image1), points0, points1, scores_of_pair in zip(pairs, *parts, strict=True)
    ]


def pad_maps(x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Pad (B, C, h, w) with zeros at the right and bottom to `size` (height, width)."""
    import torch

    return torch.nn.functional.pad(x, (0, size[1] - x.shape[3], 0, size[0] - x.shape[2]))


def num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return how much memory tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
