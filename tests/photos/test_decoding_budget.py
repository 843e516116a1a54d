"""Large photos are decoded one after the other, small ones side by side."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from sfm_matchers.matching.at_hand import READ_AHEAD_BYTES, ReadAhead
from sfm_matchers.photos import decoding_budget, images
from sfm_matchers.photos.checked import StoredPhoto
from sfm_matchers.photos.images import (
    decoded_size,
    decoding_bytes,
    read_image,
    read_image_and_orientation,
)


@pytest.mark.parametrize(("side", "at_once"), [(100, 1), (20, 4)])
def test_photos_decoded_at_once_share_a_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int, at_once: int
) -> None:
    monkeypatch.setattr(images, "DECODING", decoding_budget._Budget(6 * 80 * 80))
    counts, lock, decode, largest = [0], threading.Lock(), cv2.imdecode, [0]

    def slowly(encoded: np.ndarray, flags: int) -> np.ndarray:
        with lock:
            counts[0] += 1
            largest[0] = max(largest[0], counts[0])
        time.sleep(0.05)
        with lock:
            counts[0] -= 1
        return decode(encoded, flags)

    monkeypatch.setattr(cv2, "imdecode", slowly)
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for path in paths:
        Image.new("RGB", (side, side), (255, 0, 0)).save(path)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(decoded_size, paths)) == [(side, side)] * 4
        photos = list(threads.map(read_image, paths))
    assert largest[0] == at_once
    assert all((photo == [255, 0, 0]).all() for photo in photos)


def test_a_thread_that_holds_a_share_needs_no_other() -> None:
    budget = decoding_budget._Budget(10)
    with budget.share(20), budget.share(20):
        assert budget._used == 20
    assert budget._used == 0


def test_what_is_no_photo_takes_no_budget(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no photo")
    assert decoding_bytes(tmp_path / "a.jpg") == 0


def test_the_largest_photos_are_not_read_ahead() -> None:
    sizes = {"a": 1, "b": READ_AHEAD_BYTES, "c": 1}
    read: list[str] = []

    def decode(name: str) -> StoredPhoto:
        read.append(name)
        return StoredPhoto(np.zeros(1), None)

    with ThreadPoolExecutor(1) as threads:
        ahead = ReadAhead(decode, threads, sizes.__getitem__)
        ahead.expect(sizes)
        ahead.get("a")
        ahead.get("c")
        assert sorted(read) == ["a", "c"]
        ahead.get("b")
        ahead.expect(["b"])
        assert sorted(read) in (["a", "b", "c"], ["a", "b", "b", "c"])


def test_a_photo_and_how_it_lies_are_one_look_at_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    opened: list[object] = []
    open_file = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or open_file(path))
    image, orientation = read_image_and_orientation(tmp_path / "a.jpg")
    assert (image.shape, orientation, len(opened)) == ((4, 8, 3), 6, 1)
