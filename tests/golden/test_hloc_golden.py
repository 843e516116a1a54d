"""hloc's own results (`../shared/hloc/golden`) from the command line `hloc match_dense`.

The network is played back. `test_keypoints_golden` compares the same assembly without files of
photos, confs and command lines around it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import recorded_matcher
from hloc_golden_keypoints import (
    GOLDEN,
    IDENTICAL_FILES,
    Golden,
    Tree,
    check_features,
    check_matches,
    keypoints_by_key,
    load,
    read_tree,
    subtree,
    write_references,
)

from pipelines.hloc import main
from sfm_matchers.files.hdf5 import list_groups
from sfm_matchers.files.pair_lists import names_to_pair, write_pairs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", sorted(path.stem for path in (GOLDEN / "pipeline").glob("*.npz")))
def test_match_dense_golden_pipeline(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = load(f"pipeline/{name}.npz")
    steps = range(int(golden["num_steps"]))
    names = sorted({image for step in steps for pair in pairs_of(golden, step) for image in pair})
    recorded_matcher.install(monkeypatch, tmp_path, names)
    max_error, cell_size = float(golden["max_error"]), float(golden["cell_size"])
    recorded_matcher.write_conf(tmp_path / "recorded.yaml", max_error, cell_size)
    for step in steps:
        if golden[f"step{step}/overwrite"]:
            continue  # hloc mixes old keypoints in; see test_defect_07
        references = run_step(golden, step, tmp_path, monkeypatch)
        features = read_tree(tmp_path / "features.h5")
        matches = read_tree(tmp_path / "matches.h5")
        assert set(matches) == set(golden[f"step{step}/out_match_keys"].tolist())
        expected = subtree(golden, f"step{step}/out_features/")
        check_features(features, expected, identical=name in IDENTICAL_FILES)
        check_matches(
            matches,
            subtree(golden, f"step{step}/out_matches/"),
            keypoints_by_key(references, features),
            keypoints_by_key(references, expected),
            identical=name in IDENTICAL_FILES,
        )


def pairs_of(golden: Golden, step: int) -> list[tuple[str, str]]:
    return [(str(name0), str(name1)) for name0, name1 in golden[f"step{step}/pairs"]]


def run_step(golden: Golden, step: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Run a step by the command line on the files of the steps before; return its references."""
    dense = subtree(golden, f"step{step}/dense/")
    recorded = {}
    for name0, name1 in pairs_of(golden, step):
        found = dense.get(names_to_pair(name0, name1))
        if found is not None:
            points = found["keypoints0"].reshape(-1, 2), found["keypoints1"].reshape(-1, 2)
            recorded[name0, name1] = (*points, found["scores"])
    recorded_matcher.record(monkeypatch, recorded)
    references, reference_paths = write_references(golden, step, folder)
    write_pairs(folder / f"pairs{step}.txt", pairs_of(golden, step))
    arguments = ["--conf", folder / "recorded.yaml", "--pairs", folder / f"pairs{step}.txt"]
    arguments += ["--image-dir", folder / "images", "--features", folder / "features.h5"]
    arguments += ["--matches", folder / "matches.h5"]
    arguments += ["--max-kps", max(int(golden[f"step{step}/max_kps"]), 0)]
    if reference_paths:
        arguments += ["--features-ref", *reference_paths]
    assert main(["match_dense", *map(str, arguments)]) == 0
    return references


def test_the_photos_have_been_matched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated and reversed lines, and pairs of an earlier run, are not matched again."""
    golden = load("pipeline/resume_dups.npz")
    names = sorted(
        {image for step in range(2) for pair in pairs_of(golden, step) for image in pair}
    )
    recorded_matcher.install(monkeypatch, tmp_path, names)
    recorded_matcher.write_conf(tmp_path / "recorded.yaml")
    for step in range(2):
        run_step(golden, step, tmp_path, monkeypatch)
    calls = recorded_matcher.RecordedMatcher.calls
    assert len(calls) == len(set(map(frozenset, calls)))
    assert len(calls) == len(list_groups(tmp_path / "matches.h5"))
    assert np.isin([name for pair in calls for name in pair], names).all()
