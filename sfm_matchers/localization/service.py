"""A map as an HTTP service: a photo in, a pose out. Needs the extra serve (FastAPI).

POST /localize    multipart form: image (file), camera ("MODEL width height params...", optional)
GET  /health      what map this is
GET  /docs        the page of the API; its schema is /openapi.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pycolmap
from fastapi import FastAPI, File, Form, HTTPException, UploadFile
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sfm_matchers.errors import InputError
from sfm_matchers.files.scratch import scratch_folder
from sfm_matchers.localization.localizer import Localizer
from sfm_matchers.localization.query_files import parse_camera
from sfm_matchers.photos.images import open_photo

FORM_BYTES = 1 << 16  # of an upload beside the photo
TOO_LARGE = 413


class UsedCamera(BaseModel):
    """Intrinsics in COLMAP's convention."""

    model: str
    width: int
    height: int
    params: list[float]


class Localization(BaseModel):
    """What became of a photo: the line that `pipelines.localize` writes to its log."""

    name: str
    status: str = Field(description="localized, low confidence, fallback or failed")
    reason: str = Field(description="why there is no pose, or what speaks against it, or empty")
    qw_qx_qy_qz_tx_ty_tz: list[float] | None = Field(
        description="world to camera; of a fallback, that of the most similar photo of the map"
    )
    num_matches: int
    num_inliers: int
    inlier_ratio: float
    covariance: list[list[float]] | None = Field(
        description="6 x 6 for errors of a pixel: rotation in radians, centre, along camera axes"
    )
    camera: UsedCamera
    intrinsics: str = Field(description="whence the camera comes, and why")
    database_names: list[str] = Field(description="photos of the map it was matched with")


class Health(BaseModel):
    """What map this is."""

    status: str
    matcher: str
    photos: int
    points: int


def create_app(localizer: Localizer, *, max_bytes: int, max_pixels: int) -> FastAPI:
    """Return the service.

    Args:
        localizer: the map.
        max_bytes: of a photo's file; larger uploads are refused while they arrive.
        max_pixels: of a photo; larger ones are refused before they are decoded.
    """
    app = FastAPI(title="sfm-matchers localization", description=__doc__)
    app.add_middleware(_LimitedUploads, max_bytes=max_bytes + FORM_BYTES)
    refusals: dict[int | str, dict[str, Any]] = {
        400: {"description": "the upload is no photo, or the camera cannot be used"},
        TOO_LARGE: {"description": "the photo has too many bytes or pixels"},
    }

    @app.get("/health")
    def health() -> Health:
        settings = localizer.settings
        return Health(
            status="ok",
            matcher=settings.matcher,
            photos=settings.num_photos,
            points=settings.num_points,
        )

    @app.post("/localize", responses=refusals)
    def localize(image: UploadFile = File(), camera: str = Form("")) -> Localization:  # noqa: B008
        name = Path((image.filename or "photo").replace("\\", "/")).name or "photo"
        given = _camera(camera)
        # Through a file, as `pipelines.localize` reads it: EXIF is where a camera is looked for.
        with scratch_folder() as folder:
            path = folder / f"photo{_suffix(name)}"
            content = image.file.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise HTTPException(TOO_LARGE, f"the photo has more than {max_bytes} bytes")
            path.write_bytes(content)
            try:
                with open_photo(path) as photo:
                    width, height = photo.size
                if width * height > max_pixels:
                    raise HTTPException(
                        TOO_LARGE,
                        f"the photo has {width} x {height} pixels, at most {max_pixels} are "
                        "taken: reduce it",
                    )
                found = localizer.localize(path, given, name=name)
            except InputError as error:
                raise HTTPException(400, str(error).replace(str(path), name)) from error
        return Localization(**found.to_json())

    return app


def _camera(text: str) -> pycolmap.Camera | None:
    try:
        return parse_camera(text.split()) if text.strip() else None
    except (ValueError, IndexError, RuntimeError) as error:
        raise HTTPException(400, f"camera: expected 'MODEL width height params...': {error}") from (
            error
        )


def _suffix(name: str) -> str:
    """The ending of a name, if it can be one of a photo."""
    suffix = Path(name).suffix.lower()
    return suffix if suffix[1:].isalnum() and suffix.isascii() and len(suffix) <= 5 else ""


class _LimitedUploads:
    """Refuse bodies that are too large, without reading them to their end."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise HTTPException(TOO_LARGE, f"the upload has more than {self.max_bytes} bytes")
            return message

        await self.app(scope, limited if scope["type"] == "http" else receive, send)
