"""What the package's front page offers: matchers by name, and which there are."""

from __future__ import annotations

import inspect
import subprocess
import sys

import sfm_matchers
from sfm_matchers import MatcherInfo, list_matchers, load_matcher
from sfm_matchers.confs import conf_names
from sfm_matchers.matchers.protocols import Matches
from sfm_matchers.weights import find_checkpoint


def test_every_public_name_is_there() -> None:
    assert sfm_matchers.Matches is Matches
    assert all(hasattr(sfm_matchers, name) for name in sfm_matchers.__all__)


def test_the_default_matcher_needs_no_download() -> None:
    name = inspect.signature(load_matcher).parameters["name"].default
    assert name == "aliked+mambaglue"
    default = next(one for one in list_matchers() if one.name == name)
    assert default.weights[0] == "bundled"


def test_matchers_are_listed_with_their_licences() -> None:
    found = {one.name: one for one in list_matchers()}
    assert list(found) == conf_names()
    assert found["sift"] == MatcherInfo("sift", "sparse", (), "none needed")
    official = find_checkpoint("jamma/official")
    assert official is not None
    assert found["jamma"].kind == "detector-free"
    assert found["jamma"].weights == ("bundled", "official")
    assert found["disk+mambaglue"].weights == ("lightglue",)
    licence = found["superpoint+mambaglue"].licence
    assert licence == "Apache-2.0, superpoint Magic Leap, non-commercial"
    assert repr(found["sift"]) == "<sift: sparse; licence none needed>"
    assert repr(found["jamma"]).startswith("<jamma: detector-free; weights bundled, official; ")


def test_the_list_imports_nothing_heavy() -> None:
    code = "import sys, sfm_matchers as s; s.list_matchers(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
