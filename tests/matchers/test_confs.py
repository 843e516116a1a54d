"""Confs from anywhere: what cannot be used is named in one line, before anything takes time."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from sfm_matchers.choices import QUALITIES
from sfm_matchers.confs import (
    RESIZE_MAX,
    Detail,
    DetectorFreeConf,
    DetectorFreePreprocessing,
    FrontEnd,
    Preprocessing,
    SparseConf,
    check_options,
    conf_names,
    load_conf,
    with_detail,
)
from sfm_matchers.errors import InputError, WeightsError
from sfm_matchers.features.extraction import load_extractor
from sfm_matchers.matchers.registry import load_sparse_matcher
from sfm_matchers.networks.efficient_loftr import EfficientLoFTRConfig
from sfm_matchers.networks.jamma import JamMaConfig
from sfm_matchers.runs.matching import choose_matching
from sfm_matchers.runs.options import SfmOptions

GOOD = """
kind: detector_free
output: matches-mine
model: {name: jamma, fine_threshold: 0.1}
preprocessing: {resize_max: 832, quarter_turns: true}
max_error: 1
cell_size: 1
"""

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))

BAD = {
    "output in another folder": ("matches-mine", "../../matches-mine"),
    "absolute output": ("matches-mine", "/tmp/matches-mine"),
    "output below a folder": ("matches-mine", "matches-/../../mine"),
    "output of Windows": ("matches-mine", "matches-\\..\\..\\mine"),
    "output with an escape": ("matches-mine", '"matches-\\e[2J"'),
    "output with a zero": ("matches-mine", '"matches-\\0"'),
    "output too long": ("matches-mine", "matches-" + "x" * 300),
    "output a number": ("matches-mine", "5"),
    "output a list": ("matches-mine", "[matches-]"),
    "output null": ("matches-mine", "null"),
    "a size that is true": ("832", "true"),
    "a size below 0": ("832", "-832"),
    "a size beyond all": ("832", "1" + "0" * 400),
    "no size": ("832", "null"),
    "a length beyond all": ("cell_size: 1", "cell_size: 1.0e+30"),
    "a length below 0": ("max_error: 1", "max_error: -1"),
    "a size of text": ("832", "large"),
    "a number that is true": ("max_error: 1", "max_error: true"),
    "a number that is none": ("max_error: 1", "max_error: .nan"),
    "a number without end": ("cell_size: 1", "cell_size: .inf"),
    "a date": ("fine_threshold: 0.1", "fine_threshold: 2001-01-01"),
    "a set": ("fine_threshold: 0.1", "fine_threshold: !!set {a}"),
    "bytes": ("fine_threshold: 0.1", "fine_threshold: !!binary aGVsbG8="),
    "a key that is no text": ("fine_threshold: 0.1", "5: 0.1"),
    "a list for keys": ("{name: jamma, fine_threshold: 0.1}", "[jamma]"),
    "a name that is no text": ("name: jamma", "name: [jamma]"),
    "a list that holds itself": ("max_error: 1", "max_error: &a [*a]"),
    "a bomb": ("kind:", f"{BOMB}kind:"),
    "a key that is there twice": ("max_error: 1", "max_error: 1\nmax_error: 3"),
    "a tag that runs code": ("0.1", "!!python/object/apply:os.system [ls]"),
}


@pytest.mark.parametrize(("old", "new"), BAD.values(), ids=BAD.keys())
def test_values_that_cannot_be_are_named(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    load_conf(str(path))
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(InputError) as caught:
        load_conf(str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["output", "model", "max_error", "cell_size"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("".join(line for line in GOOD.splitlines(True) if not line.startswith(key)))
    with pytest.raises(InputError) as caught:
        load_conf(str(path))
    assert str(caught.value) == f"{path}: {key!r} is missing"


def test_what_a_conf_says_is_typed(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    conf = load_conf(str(path))
    assert isinstance(conf, DetectorFreeConf)
    assert conf.preprocessing == DetectorFreePreprocessing(resize_max=832, quarter_turns=True)
    assert conf.preprocessing.settings() == {"resize_max": 832, "quarter_turns": True}
    assert (conf.matcher, conf.options) == ("jamma", {"fine_threshold": 0.1})
    path.write_text(GOOD.replace("preprocessing: {resize_max: 832, quarter_turns: true}\n", ""))
    unsaid = load_conf(str(path))
    assert isinstance(unsaid, DetectorFreeConf)
    assert unsaid.preprocessing == DetectorFreePreprocessing(resize_max=RESIZE_MAX)
    sift = load_conf("sift")
    assert isinstance(sift, SparseConf)
    options = {"max_num_features": 8192}
    assert sift.features == FrontEnd("sift", options, "feats-sift", Preprocessing(3200))
    assert sift.features.settings() == {
        "output": "feats-sift",
        "model": {"name": "sift", "max_num_features": 8192},
        "preprocessing": {"resize_max": 3200},
    }


def test_what_is_no_conf_file_is_named(tmp_path: Path) -> None:
    for name in ("gone.yaml", "folder.yaml", "pipe.yaml"):
        path = tmp_path / name
        if name == "folder.yaml":
            path.mkdir()
        elif name == "pipe.yaml":
            os.mkfifo(path)
        with pytest.raises(InputError, match=f"{name} is no conf file"):
            load_conf(str(path))
    (tmp_path / "large.yaml").write_text("#" * 100_000)
    with pytest.raises(InputError, match="more than 65536 letters"):
        load_conf(str(tmp_path / "large.yaml"))
    for name in ("../configs/sift", "sift\0", "x" * 5000):
        with pytest.raises(InputError, match="unknown matcher"):
            load_conf(name)


@pytest.mark.parametrize(
    ("config", "options", "reason"),
    [
        (JamMaConfig, {"fine_threshold": "high"}, "'fine_threshold' must be a number"),
        (JamMaConfig, {"fine_threshold": True}, "'fine_threshold' must be a number"),
        (JamMaConfig, {"fine_threshold": None}, "'fine_threshold' must be a number"),
        (JamMaConfig, {"border": 1.5}, "'border' must be a whole number"),
        (JamMaConfig, {"precision": 16}, "'precision' must be text"),
        (EfficientLoFTRConfig, {"skip_softmax": 1}, "'skip_softmax' must be true or false"),
        (EfficientLoFTRConfig, {"train_hw": [832]}, "'train_hw' must be 2 whole numbers"),
        (EfficientLoFTRConfig, {"train_hw": 832}, "'train_hw' must be 2 whole numbers"),
    ],
)
def test_options_have_the_types_of_their_defaults(
    config: type, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        check_options(config, options, "here")


def test_options_of_our_confs_are_of_their_types() -> None:
    assert check_options(JamMaConfig, {"fine_threshold": 1}, "here") == {"fine_threshold": 1}
    sizes = check_options(EfficientLoFTRConfig, {"train_hw": [832, 640]}, "here")
    assert sizes == {"train_hw": (832, 640)}
    with pytest.raises(InputError, match="above 0"):
        JamMaConfig(coarse_temperature=0)
    confs = [load_conf(name) for name in conf_names()]
    assert len(confs) == len(conf_names())


def test_matchers_refuse_options_of_another_type() -> None:
    sift = load_conf("sift")
    assert isinstance(sift, SparseConf)
    bad = replace(sift, name="bad", model={**sift.model, "ratio": "high"})
    with pytest.raises(InputError, match="'ratio' must be a number, found 'high'"):
        load_sparse_matcher(bad, "", "cpu")


# Detail -------------------------------------------------------------------------------------------


def seen(name: str, detail: Detail) -> tuple[int, int]:
    """Longer side in pixels, and number of keypoints, of a conf."""
    conf = with_detail(load_conf(name), detail)
    if isinstance(conf, DetectorFreeConf):
        assert conf.max_keypoints is not None
        return conf.preprocessing.resize_max, conf.max_keypoints
    model = conf.features.options
    limits = {model[key] for key in ("max_num_features", "max_num_keypoints") if key in model}
    (limit,) = limits
    assert conf.features.preprocessing.resize_max is not None
    return conf.features.preprocessing.resize_max, limit


def test_quality_means_with_sift_what_it_means_in_colmap() -> None:
    of_colmap = [(1000, 2048), (1600, 4096), (2400, 8192), (3200, 8192)]
    assert [seen("sift", Detail(quality)) for quality in QUALITIES] == of_colmap


@pytest.mark.parametrize("name", sorted(set(conf_names()) - {"sift"}))
def test_quality_of_networks_has_the_same_proportions(name: str) -> None:
    size, count = seen(name, Detail())
    assert seen(name, Detail("medium")) == (size, count)
    assert seen(name, Detail("low")) == (size * 1000 // 1600, count // 2)
    assert seen(name, Detail("extreme")) == (2 * size, 2 * count)


@pytest.mark.parametrize("name", conf_names())
def test_size_and_number_count_more_than_quality(name: str) -> None:
    assert seen(name, Detail("low", 777, 555)) == (777, 555)
    assert seen(name, Detail(None, 777, None)) == (777, seen(name, Detail())[1])
    assert with_detail(load_conf(name), Detail()) == load_conf(name)


@pytest.mark.parametrize("detail", [Detail("best"), Detail(None, 0), Detail(None, None, -1)])
def test_other_detail_is_refused(detail: Detail) -> None:
    with pytest.raises(InputError):
        with_detail(load_conf("sift"), detail)


SPARSE = """
kind: sparse
features: {output: feats-mine, model: {name: sift, max_num_keypoints: 9}}
output: matches-mine
model: {name: mambaglue, features: sift, filter_threshold: 0.1}
"""

UNKNOWN = {
    "an option of a network": (GOOD, "fine_threshold", "fine_thresholds"),
    "a value of a network": (GOOD, "fine_threshold: 0.1", "border: -1"),
    "a matcher of images": (GOOD, "jamma", "jammma"),
    "an option of a matcher": (SPARSE, "filter_threshold", "filter"),
    "features that no weights are for": (SPARSE, "features: sift", "features: x"),
    "no features": (SPARSE, "features: sift, ", ""),
    "a front-end": (SPARSE, "name: sift", "name: shift"),
    "an option of a front-end": (SPARSE, "max_num_keypoints", "max_num_key"),
    "a value of a front-end": (SPARSE, "max_num_keypoints: 9", "max_num_keypoints: -9"),
    "an option of COLMAP's": (
        SPARSE,
        "name: mambaglue, features: sift, filter_threshold",
        "name: colmap_nearest_neighbor, ratios",
    ),
}


def load(path: Path) -> None:
    conf = choose_matching(SfmOptions(path.parent, path.parent, str(path))).conf
    assert isinstance(conf, SparseConf)
    load_extractor(conf.features.model, where=conf.features.where)  # it alone knows its values


@pytest.mark.parametrize(("good", "old", "new"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_no_matcher_takes_is_said_of_the_file(
    tmp_path: Path, good: str, old: str, new: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(good.replace(old, new))
    with pytest.raises((InputError, WeightsError)) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert load_conf("jamma").where == "conf jamma"
