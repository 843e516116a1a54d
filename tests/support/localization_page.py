"""Results of a localization, made up, and the page about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap

from sfm_matchers.localization.poses import LocalizedQuery, Status
from sfm_matchers.reports.localization import write_localization_report

ODD_NAME = "new/<script>alert(1)<b>.png"


def write_page(folder: Path, model: pycolmap.Reconstruction, results: list[LocalizedQuery]) -> Path:
    """Write the report of photos that lie in the folder ``images``."""
    return write_localization_report(folder / "report.html", folder / "images", model, results)


def make_results(model: pycolmap.Reconstruction) -> list[LocalizedQuery]:
    """Photos at the poses of the map's first two, one without a pose, and one with another's."""
    images = [model.images[i] for i in sorted(model.reg_image_ids())[:2]]
    camera = model.cameras[images[0].camera_id]
    first, second = (image.cam_from_world() for image in images)
    return [
        LocalizedQuery("new/b.png", Status.LOW_CONFIDENCE, camera, second, "few <inliers>"),
        LocalizedQuery(ODD_NAME, Status.LOCALIZED, camera, first, covariance=1e-4 * np.eye(6)),
        LocalizedQuery("new/c.png", Status.FAILED, camera, None, "it is <dark>"),
        LocalizedQuery("new/d.png", Status.FALLBACK, camera, second, "no matches"),
    ]
