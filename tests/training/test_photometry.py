"""Changes of appearance change nothing geometric."""

from __future__ import annotations

import pytest
import torch

from sfm_matchers.training.data import photometry


@pytest.fixture
def every_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes that are made to a share of the images are made to all."""
    chosen = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    monkeypatch.setattr(photometry, "_chosen", lambda images, share, generator: chosen)


def test_an_image_keeps_its_size_and_range() -> None:
    images = torch.rand(4, 3, 45, 70, generator=torch.Generator().manual_seed(0))
    changed = photometry.vary_appearance(images, 1.0, torch.Generator().manual_seed(1))
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert (changed - images).abs().mean() > 0.02


@pytest.mark.usefixtures("every_image")
def test_tones_depend_on_brightness_alone() -> None:
    ramp = torch.linspace(0, 1, 64)
    images = torch.stack([ramp, ramp.flip(0)]).repeat(3, 3, 1, 1)
    changed = photometry._tones(images, 1.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(changed[:, :, 0], changed[:, :, 1].flip(-1))
    slopes = changed[:, 0, 0].diff(dim=1)
    assert slopes.max() > 1e-4
    assert slopes.min() < -1e-4, "brighter may become darker"
    assert slopes.abs().max() < 0.1, "and steps nowhere"


@pytest.mark.usefixtures("every_image")
def test_tones_keep_colours() -> None:
    images = 0.3 + 0.2 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    changed = photometry._tones(images, 1.0, torch.Generator().manual_seed(5))
    inside = ((changed > 0) & (changed < 1)).all(1, keepdim=True).expand_as(images)
    before, after = (image - image.mean(1, keepdim=True) for image in (images, changed))
    torch.testing.assert_close(after[inside], before[inside])
    assert inside.any()
