"""The switches of a detector-free conf's preprocessing."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfm_matchers.confs import CONF_DIR, DetectorFreeConf, load_conf
from sfm_matchers.errors import InputError

switches = pytest.mark.parametrize(
    "key", ["quarter_turns", "match_overlap", "least_squares_matching"]
)


@switches
@pytest.mark.parametrize("name", ["jamma", "eloftr", "eloftr_opt"])
def test_confs_for_photo_collections_have_all(name: str, key: str) -> None:
    conf = load_conf(name)
    assert isinstance(conf, DetectorFreeConf)
    assert getattr(conf.preprocessing, key) is True


@switches
def test_mistakes_in_the_conf_are_named(key: str, tmp_path: Path) -> None:
    text = (CONF_DIR / "jamma.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(f"{key}: true", f"{key}: 4"))
    with pytest.raises(InputError, match=f"'{key}' must be true or false, found 4"):
        load_conf(str(path))
    path.write_text(text.replace(key, key[:-1]))
    with pytest.raises(InputError, match=f"did you mean '{key}'"):
        load_conf(str(path))
    sparse = (CONF_DIR / "sift.yaml").read_text()
    path.write_text(sparse.replace("resize_max", key))
    with pytest.raises(InputError, match=key):
        load_conf(str(path))
