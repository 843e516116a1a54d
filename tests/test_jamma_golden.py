"""JamMa against the authors' network, stage by stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shared_path
from golden_weights_jamma import golden_normal, golden_state_dict
from torch import Tensor

from sfm_matchers.networks import jamma
from sfm_matchers.networks.jamma import JamMa, JamMaConfig, JamMaFeatures
from sfm_matchers.networks.mamba import run_side_by_side
from sfm_matchers.networks.selective_scan import selective_scan

GOLDEN = shared_path("networks/jamma/golden")
TOLERANCE = 1e-4
CASES = {
    "a": "case_a_nomask_160x224",
    "b": "case_b_padded_192x192",
    "c": "case_c_batch2_128x160",
    "d": "case_d_batch2_padded_128x128",
}
CANVAS = {"a": (160, 224), "b": (192, 192), "c": (128, 160), "d": (128, 128), "t": (96, 96)}
