"""Which pairs a run sees, and when; the same for every network."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sfm_matchers.training.data.homographies import sample_homography_pairs
from sfm_matchers.training.data.megadepth import PosedPhotographs
from sfm_matchers.training.data.pair_batch import PairBatch
from sfm_matchers.training.data.parallax import sample_parallax_pairs
from sfm_matchers.training.data.photographs import Photographs
from sfm_matchers.training.data.teacher_pairs import TeacherPairs

REFERENCE_AREA = 240 * 320  # pixels of an image for which the batch size is meant
# Sizes until a share of the run; multiples of what every network asks for. Small images show more
# photographs for the same work; those of users are larger still, and the more cells or keypoints,
# the more there is to confuse.
SIZES = {
    0.35: [(160, 224), (224, 160), (192, 192), (160, 160)],
    0.7: [(288, 384), (384, 288), (320, 416), (416, 320), (384, 512), (512, 384)],
    1.0: [(480, 640), (640, 480), (512, 608), (608, 512)],
}
EASIEST, HARDEST = 0.5, 0.85  # strength of the warps at the beginning and from HARDEST_FROM on
HARDEST_FROM = 0.6  # of the run
REAL_SHARE = 0.5  # of the batches, where there are posed photographs, or such with a teacher
PARALLAX_SHARE = 0.65  # of the other batches
MISMATCHED_SHARE = 0.1  # of the batches whose pairs are all wrong
TURNED_SHARE = 0.25  # of the batches made of photographs, one image turned by any angle allowed
UPRIGHT = 45.0  # degrees; photos of networks on images are brought within them by quarter turns
ANY_TURN = 180.0  # for networks on features that turn with the image
VALIDATION_SIZE = (256, 320)
VALIDATION_SEED = 20_000_000


def sample_scheduled_pairs(
    photographs: Photographs,
    batch_size: float,
    progress: float,
    generator: torch.Generator,
    device: torch.device,
    max_turn: float,
) -> PairBatch:
    """Pairs that grow larger and harder with the run, at constant work; some are no pairs.

    Args:
        photographs: to make pairs of.
        batch_size: number of pairs of `REFERENCE_AREA`.
        progress: of the run, 0 to 1.
        generator: CPU generator from which everything is drawn.
        device: of the images.
        max_turn: degrees, 0 to 180, by which users turn cameras between photos that the network
            is to match.
    """
    real = _draw_real_photographs(photographs, generator)
    if real is not None:
        size, count = _draw_size(batch_size, progress, generator)
        batch = real.sample_pairs(count, size, generator=generator, device=device)
    else:
        batch = sample_made_pairs(photographs, batch_size, progress, generator, device, max_turn)
    if isinstance(real, TeacherPairs):
        return batch  # two pairs may show one place, and nothing tells which parts they share
    is_mismatched = float(torch.rand((), generator=generator)) < MISMATCHED_SHARE
    return batch.mismatched() if is_mismatched and len(batch) > 1 else batch


def _draw_real_photographs(
    photographs: Photographs, generator: torch.Generator
) -> PosedPhotographs | TeacherPairs | None:
    """Where a batch of real pairs comes from, each source as likely; None for one of made pairs."""
    sources = [one for one in (photographs.posed, photographs.taught) if one is not None]
    if not sources or float(torch.rand((), generator=generator)) >= REAL_SHARE:
        return None
    if len(sources) == 1:
        return sources[0]
    return sources[int(torch.randint(len(sources), (), generator=generator))]


def sample_made_pairs(
    photographs: Photographs,
    batch_size: float,
    progress: float,
    generator: torch.Generator,
    device: torch.device,
    max_turn: float,
) -> PairBatch:
    """Pairs made of single photographs; arguments as `sample_scheduled_pairs`."""
    size, count = _draw_size(batch_size, progress, generator)
    strength = EASIEST + (HARDEST - EASIEST) * min(1.0, progress / HARDEST_FROM)
    with_parallax = float(torch.rand((), generator=generator)) < PARALLAX_SHARE
    sample = sample_parallax_pairs if with_parallax else sample_homography_pairs
    is_turned = float(torch.rand((), generator=generator)) < TURNED_SHARE
    return sample(
        photographs,
        count,
        size,
        strength=strength,
        generator=generator,
        device=device,
        max_turn=max_turn if is_turned else 0.0,
    )


def _draw_size(
    batch_size: float, progress: float, generator: torch.Generator
) -> tuple[tuple[int, int], int]:
    """Height and width of images, and how many pairs of them make a batch."""
    sizes = next(sizes for until, sizes in SIZES.items() if progress <= until)
    size = sizes[int(torch.randint(len(sizes), (), generator=generator))]
    return size, max(1, round(batch_size * REFERENCE_AREA / (size[0] * size[1])))


def validation_sets(
    photographs: Photographs, device: torch.device, max_turn: float
) -> dict[str, list[PairBatch]]:
    """Always the same pairs of the held-out photographs, by kind; `max_turn` as in training."""
    kinds: dict[str, tuple[Callable[..., PairBatch], float, float]] = {
        "easy": (sample_homography_pairs, 0.5, 0.0),
        "hard": (sample_homography_pairs, 1.0, 0.0),
        "parallax": (sample_parallax_pairs, 0.7, 0.0),
        "turned": (sample_homography_pairs, 0.5, max_turn),
    }
    sets = {
        name: [
            sample(
                photographs,
                4,
                VALIDATION_SIZE,
                strength=strength,
                generator=torch.Generator().manual_seed(VALIDATION_SEED + index),
                device=device,
                max_turn=turn,
            )
            for index in range(2)
        ]
        for name, (sample, strength, turn) in kinds.items()
    }
    if photographs.posed:
        sets["posed"] = [
            photographs.posed.sample_pairs(
                4,
                VALIDATION_SIZE,
                generator=torch.Generator().manual_seed(VALIDATION_SEED + index),
                device=device,
            )
            for index in range(2)
        ]
    return sets


def mean_over_validation_sets(
    photographs: Photographs,
    device: torch.device,
    max_turn: float,
    measure: Callable[[PairBatch, torch.Generator], dict[str, torch.Tensor]],
) -> dict[str, float]:
    """Average what `measure` finds over the batches of each kind: ``<kind>_<name>`` -> mean."""
    means: dict[str, float] = {}
    for kind, batches in validation_sets(photographs, device, max_turn).items():
        values: dict[str, list[float]] = {}
        for batch in batches:
            generator = torch.Generator().manual_seed(VALIDATION_SEED)
            for name, value in measure(batch, generator).items():
                values.setdefault(f"{kind}_{name}", []).append(float(value))
        means |= {name: sum(many) / len(many) for name, many in values.items()}
    return means


def calibration_pairs(
    photographs: Photographs, size: tuple[int, int], device: torch.device
) -> PairBatch:
    """Return eight easy pairs, always the same, on which initial weights are scaled.

    Args:
        photographs: to make them of.
        size: height and width in pixels.
        device: where they are to be.
    """
    return sample_homography_pairs(
        photographs,
        8,
        size,
        strength=EASIEST,
        generator=torch.Generator().manual_seed(VALIDATION_SEED),
        device=device,
    )
