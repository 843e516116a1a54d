"""The conf that a map keeps is the one it was built with."""

from __future__ import annotations

from sfm_matchers.confs import SparseConf, conf_names, load_conf, parse_conf
from sfm_matchers.localization.map_folder import conf_content


def test_confs_come_back_from_what_a_map_keeps() -> None:
    for conf in map(load_conf, conf_names()):
        if isinstance(conf, SparseConf):
            assert parse_conf(conf.name, conf_content(conf), "here") == conf
