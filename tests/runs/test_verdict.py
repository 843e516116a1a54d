"""A run ends with a judgement that a user can act on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfm_matchers.localization.poses import LocalizedQuery, Status
from sfm_matchers.mapping.diagnosis import FEW_VERIFIED, NEAR, TURNED
from sfm_matchers.runs import verdict
from sfm_matchers.runs.verdict import judge_localization, judge_model

NAMES = [f"{index:02d}.jpg" for index in range(13)]
PAIRS = list(combinations(NAMES, 2))


@dataclass
class Model:
    """What a verdict asks of a model."""

    num_images: int
    error: float = 0.4
    first: int = 0  # of its images

    def num_reg_images(self) -> int:
        return self.num_images

    def reg_image_ids(self) -> list[int]:
        return [*range(self.first, self.first + self.num_images)]

    def compute_mean_reprojection_error(self) -> float:
        return self.error


def judge(*models: Any, pairs: Any = PAIRS, matcher: str = "sift", **given: Any) -> Any:
    return judge_model(models, NAMES, pairs, matcher=matcher, **given)


@pytest.fixture(autouse=True)
def speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict, "_speed", lambda: verdict.REFERENCE_SPEED)


def test_few_photos_are_poor_and_a_matcher_is_named() -> None:
    found = judge(Model(2, 0.091))
    assert found.level == "poor"
    assert found.text == (
        "only 2 of 13 photos are in the model; try --matcher jamma, about 12 minutes here, "
        "or photos between those that match"
    )


def test_masks_that_may_be_the_other_way_round_are_pointed_out_where_photos_are_missing() -> None:
    for models in ((), (Model(2),), (Model(10),)):
        text = judge(*models, masked=0.88).text
        assert text.endswith(
            "; the masks ignore 88 % of the photos: black is ignored, white is used"
        )
        assert "masks" not in judge(*models, masked=0.4).text
    assert "masks" not in judge(Model(13), masked=0.88).text  # of a thing on a turntable


def test_a_doubt_is_the_likelier_reason_for_few_photos() -> None:
    found = judge(Model(2), doubt="the given intrinsics contradict the photos")
    assert found.level == "poor"
    assert found.text.startswith(
        "only 2 of 13 photos are in the model; the given intrinsics contradict the photos; try "
    )


def test_all_photos_are_good_and_calm() -> None:
    found = judge(Model(13, 0.4))
    assert (found.level, found.text) == (
        "good",
        "all 13 photos are in the model, with a mean error of 0.40 px",
    )


def test_most_photos_are_fair() -> None:
    further = Model(3, first=10), Model(3, first=8)  # photos may be in several
    found = judge(Model(10), *further, pairs=PAIRS[:40], matcher="jamma")
    assert found.level == "fair"
    assert found.text == (
        "10 of 13 photos are in the model, 3 more in further ones; "
        "try --pairs exhaustive (78 pairs instead of 40), or photos between those that match"
    )


def test_no_model_is_poor() -> None:
    found = judge(matcher="jamma")
    assert (found.level, found.text) == (
        "poor",
        "no model of 13 photos; try photos between those that match",
    )


def test_no_model_is_for_the_cause_that_was_found() -> None:
    assert judge(cause=FEW_VERIFIED).text == (
        "no model of 13 photos: too few verified matches; try --matcher jamma, about 12 minutes "
        "here, or photos between those that match"
    )
    assert judge(cause=NEAR).text == f"no model of 13 photos: {NEAR.what}; {NEAR.remedy}"
    found = judge(cause=NEAR, faults={"00.jpg": "dark"})
    assert found.text.endswith(f"(dark): take them again; {NEAR.remedy}")


def test_photos_at_fault_are_no_fault_of_the_matcher() -> None:
    found = judge(Model(11), faults={"00.jpg": "dark", "01.jpg": ""})
    assert found.level == "fair"
    assert "2 photos without enough keypoints (dark): take them again" in found.text
    assert "--matcher" not in found.text
    found = judge(Model(12), faults={"01.jpg": ""})  # nothing is wrong with the photo itself
    assert "1 photo without enough keypoints: a larger --max_image_size, or" in found.text


def test_masks_that_leave_nothing_are_no_reason_to_take_photos_again() -> None:
    found = judge(faults={"00.jpg": "masked, or transparent, all over", "01.jpg": "mostly masked"})
    assert "all over, mostly masked): check what is masked or transparent there;" in found.text
    found = judge(faults={"00.jpg": "mostly masked", "01.jpg": "dark"})
    assert "check what is masked or transparent there, or take them again;" in found.text


def test_large_errors_and_doubts_are_fair() -> None:
    assert judge(Model(13, 3.0)).level == "fair"
    assert "3.0 px is large" in judge(Model(13, 3.0)).text
    found = judge(Model(13), doubt="try --camera_mode per_image")
    assert found.level == "fair"
    assert "--camera_mode per_image" in found.text


def test_a_camera_that_only_turned_is_poor_whatever_its_errors() -> None:
    found = judge(Model(13, 0.14), turned=NAMES)
    assert found.level == "poor"
    assert found.text == (
        "all 13 photos are in the model, but the camera only turned between them, so that its "
        "places and all depths mean nothing: walk sideways between photos instead of turning on "
        "the spot"
    )
    assert judge(cause=TURNED).text == (
        "no model of 13 photos: the camera only turned; walk sideways between photos instead of "
        "turning on the spot"
    )
    found = judge(Model(13, 0.14), turned=["05.jpg"], doubt="its cameras are uncertain")
    assert found.level == "fair"
    assert "uncertain; of 1 photo (05.jpg) nothing tells its place" in found.text


def test_nothing_is_said_of_the_time_on_a_gpu() -> None:
    assert "here" not in judge(Model(2), device="cuda").text


@given(st.integers(0, 13), st.floats(0, 50), st.sampled_from(["sift", "jamma", "my.yaml", "auto"]))
def test_more_photos_are_never_worse(found: int, error: float, matcher: str) -> None:
    levels = ["poor", "fair", "good"]

    def level(number: int) -> int:
        return levels.index(judge(*[Model(number, error)] * (number > 0), matcher=matcher).level)

    assert level(found) <= level(13)
    assert level(0) == 0


def queries(*statuses: Status) -> list[Any]:
    found = [LocalizedQuery(f"{index}.jpg", status, None) for index, status in enumerate(statuses)]
    for query in found:
        query.database_names = ["map.jpg"]
    return found


def test_localization() -> None:
    good, bad, unsure = Status.LOCALIZED, Status.FAILED, Status.LOW_CONFIDENCE
    assert judge_localization(queries(good, good), "sift").level == "good"
    assert judge_localization(queries(good, good, bad), "sift").level == "fair"
    found = judge_localization(queries(good, unsure, bad), "jamma")
    assert found.level == "poor"
    assert found.text == (
        "1 of 3 queries localized, 1 with low confidence; try a larger --num_loc; "
        "the report has a reason for each"
    )
    unsure_ones = queries(good, unsure)
    unsure_ones[1].reason = "12 matches fit its pose, at least 20 are asked for"
    unsure_ones[1].inliers = np.ones(12, dtype=bool)
    assert "a larger --num_loc" in judge_localization(unsure_ones, "sift").text
    unsure_ones[1].reason = "the matches contradict its focal length"
    unsure_ones[1].inliers = np.ones(20, dtype=bool)
    found = judge_localization(unsure_ones, "sift")
    assert found.text == (
        "1 of 2 queries localized, 1 with low confidence; the report has a reason for each"
    )


def test_no_matcher_is_advised_for_what_is_no_photo() -> None:
    found = queries(Status.LOCALIZED, Status.FAILED)
    found[1].database_names = []
    expected = "1 of 2 queries localized; the report has a reason for each"
    assert judge_localization(found, "sift").text == expected


def test_a_map_that_is_ready_takes_no_other_matcher() -> None:
    found = queries(Status.LOCALIZED, Status.FAILED)
    text = judge_localization(found, "sift", 1, has_map_photos=False).text
    assert "try the model as --map, with --map_images and --matcher jamma;" in text


def test_more_photos_of_the_map_are_advised_only_where_it_has_more() -> None:
    missing = queries(Status.LOCALIZED, Status.FALLBACK)
    missing[1].database_names = ["a.jpg", "b.jpg", "c.jpg"]
    for matcher, num_photos, advice in [
        ("sift", 4, "try a larger --num_loc, or --matcher jamma;"),
        ("sift", 3, "try --matcher jamma;"),
        ("jamma", 3, "try a map of more photos;"),
    ]:
        assert advice in judge_localization(missing, matcher, num_photos).text
