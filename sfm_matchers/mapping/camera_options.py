"""What is known of a run's cameras before mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pycolmap

from sfm_matchers.photos.cameras import CameraGroups
from sfm_matchers.photos.given_cameras import (
    GivenCamera,
    check_given,
    find_camera,
)
from sfm_matchers.photos.intrinsics import (
    GUESSED_FOCAL_LENGTH,
    Size,
    format_params,
    parse_params,
)


@dataclass(frozen=True)
class CameraOptions:
    """Camera models of new photos, and what is known of their intrinsics.

    Attributes:
        model: COLMAP camera model.
        params: known intrinsics in COLMAP's order, comma-separated, in pixels ("" = estimate them,
            starting from EXIF). Known intrinsics are kept as they are while mapping.
        given: cameras of single photos, which go before the others.
    """

    model: str = "SIMPLE_RADIAL"
    params: str = ""
    given: Sequence[GivenCamera] = ()

    def of(self, name: str) -> GivenCamera:
        """What is known of the camera of a photo.

        Raises:
            InputError: unknown camera model, or parameters that are none of it.
        """
        params = tuple(parse_params(self.model, self.params))
        return find_camera(self.given, name) or GivenCamera("*", self.model, params)

    def check(self, sizes: Mapping[str, Size]) -> None:
        """Compare what is known with the photos: name -> size.

        Raises:
            InputError: see `intrinsics.check_given`.
        """
        params = tuple(parse_params(self.model, self.params))
        if self.given or params:
            others = [GivenCamera("*", self.model, params)] if params else []
            check_given([*self.given, *others], sizes)

    def split(self, cameras: CameraGroups, sizes: Mapping[str, Size], mode: str) -> CameraGroups:
        """Photos that share a camera: those of one line of `given` and one size do.

        In the mode ``per_image`` all photos have their own, as before.
        """
        if not self.given or mode == "per_image":
            return cameras
        groups: dict[Any, list[str]] = {}
        for index, group in enumerate(cameras.groups):
            for name in group:
                line = find_camera(self.given, name)
                key = (index, None) if line is None else (line, sizes[name])
                groups.setdefault(key, []).append(name)
        lines = sum(isinstance(key[0], GivenCamera) for key in groups)
        reason = f"{lines} camera(s) given; {cameras.reason}"
        return CameraGroups(list(groups.values()), reason)

    def reader_options(
        self, name: str = "", guess: float = GUESSED_FOCAL_LENGTH
    ) -> pycolmap.ImageReaderOptions:
        """Return pycolmap's options for a photo.

        Args:
            name: of the photo; cameras of single photos are not looked for without it.
            guess: focal length over the longer side where none is known.

        Raises:
            InputError: unknown camera model, or the wrong number of parameters.
        """
        camera = self.of(name)
        return pycolmap.ImageReaderOptions(
            camera_model=camera.model,
            camera_params=format_params(camera.params),
            default_focal_length_factor=guess,
        )
