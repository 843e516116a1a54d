"""Errors of poses in a map."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pycolmap

# Of the benchmarks: metres and degrees.
RECALL_THRESHOLDS = ((0.25, 2.0), (0.5, 5.0), (1.0, 10.0))


def pose_errors(
    poses: Mapping[str, pycolmap.Rigid3d], truth: Mapping[str, pycolmap.Rigid3d]
) -> dict[str, tuple[float, float]]:
    """Distance of the centres (units of the map) and angle (degrees) for each true pose.

    Both are infinite where there is no pose. Of a name that is not there as a whole the folders do
    not count, which submission files do not have.
    """
    found = {name.rpartition("/")[2]: pose for name, pose in poses.items()}
    errors = {}
    for name, true in truth.items():
        pose = poses.get(name, found.get(name.rpartition("/")[2]))
        errors[name] = (np.inf, np.inf)
        if pose is not None:
            offset = pose.inverse().translation - true.inverse().translation
            turn = (pose.rotation * true.rotation.inverse()).angle()
            errors[name] = (float(np.linalg.norm(offset)), float(np.rad2deg(turn)))
    return errors


def recall_table(
    poses: Mapping[str, pycolmap.Rigid3d], truth: Mapping[str, pycolmap.Rigid3d]
) -> str:
    """Recall at `RECALL_THRESHOLDS`, by condition: what stands before the last ``_`` of a name."""
    by_condition: dict[str, list[tuple[float, float]]] = {}
    for name, error in pose_errors(poses, truth).items():
        condition = name.rpartition("/")[2].rpartition("_")[0] or "queries"
        by_condition.setdefault(condition, []).append(error)
    thresholds = " / ".join(f"({m:g} m, {d:g} deg)" for m, d in RECALL_THRESHOLDS)
    lines = [f"recall at {thresholds}"]
    for condition, errors in sorted(by_condition.items()):
        metres, degrees = np.array(errors).T
        recalls = [100 * ((metres <= m) & (degrees <= d)).mean() for m, d in RECALL_THRESHOLDS]
        numbers = " / ".join(f"{recall:.1f}" for recall in recalls)
        median = f"median {np.median(metres):.3f} m, {np.median(degrees):.3f} deg"
        lines.append(f"{condition}: {numbers} % of {len(errors)} queries; {median}")
    return "\n".join(lines)
