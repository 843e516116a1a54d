"""The detector-free matcher that a benchmark is asked for, on one thread of a CPU."""

from __future__ import annotations

import argparse

import torch

from sfm_matchers.confs import DetectorFreeConf, load_conf
from sfm_matchers.matchers.protocols import DetectorFreeMatcher
from sfm_matchers.matchers.registry import load_detector_free_matcher


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--matcher`` and ``--weights``."""
    parser.add_argument("--matcher", default="jamma", help="a conf (default: jamma)")
    parser.add_argument("--weights", default="bundled", help="default: bundled")


def load(matcher: str, weights: str = "bundled") -> DetectorFreeMatcher:
    """Load the matcher of a conf; torch has one thread from then on."""
    torch.set_num_threads(1)
    conf = load_conf(matcher)
    assert isinstance(conf, DetectorFreeConf)
    return load_detector_free_matcher(conf, weights, "cpu")
