"""The cases of `benchmarks.localization_honesty`, in a map and beside the photos of one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.localization_honesty import UNITS, by_map, by_photos, cases, changes, outcome
from sfm_matchers.localization.poses import Status
from sfm_matchers.synthetic import Camera, make_scene, write_photos

pytestmark = pytest.mark.slow


def test_both_kinds_of_matchers_get_the_same_cases(tmp_path: Path) -> None:
    camera = Camera.from_field_of_view(240, 180)
    write_photos(tmp_path, make_scene(5, kind="room", texture_size=384), 8, 1, camera=camera)
    every = list(cases(tmp_path, 5, "room", 1, camera))
    counts = []
    for localized in (by_map, by_photos):
        found = list(localized(tmp_path, "sift", every, 4))
        counts.append(Counter((units, case[0]) for units, case, _ in found))
        for units, (condition, _, given, truth), query in found:
            if truth is not None and units:
                truth = changes()[units].transform_camera_world(truth)
            result = outcome(query, truth, UNITS[units][0] if units else 1.0)
            assert not result.is_wrong
            if condition == "day":
                assert result.status is Status.LOCALIZED
            if given is not None:  # it is what the query has, whatever fits
                assert np.allclose(query.camera.params, given.params)
    assert counts[0] == counts[1]
    assert len(every) == 10
    assert counts[0].total() == len(every) + len(UNITS)
