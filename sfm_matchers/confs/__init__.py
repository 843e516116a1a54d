"""Named confs in hloc's schema: which front-end, which matcher, which options."""

from sfm_matchers.confs.detail import Detail, with_detail
from sfm_matchers.confs.options import build, check_keys, check_options
from sfm_matchers.confs.reading import CONF_DIR, conf_names, load_conf, parse_conf
from sfm_matchers.confs.types import (
    RESIZE_MAX,
    Conf,
    DetectorFreeConf,
    DetectorFreePreprocessing,
    FrontEnd,
    Preprocessing,
    SparseConf,
)

__all__ = [
    "CONF_DIR",
    "RESIZE_MAX",
    "Conf",
    "Detail",
    "DetectorFreeConf",
    "DetectorFreePreprocessing",
    "FrontEnd",
    "Preprocessing",
    "SparseConf",
    "build",
    "check_keys",
    "check_options",
    "conf_names",
    "load_conf",
    "parse_conf",
    "with_detail",
]
