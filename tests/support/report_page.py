"""A made-up reconstruction and the page of its report, as a browser sees it."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pycolmap

from sfm_matchers.files.pair_lists import names_to_pair
from sfm_matchers.reports.drawing import write_image
from sfm_matchers.reports.reconstruction import write_report

NUM_IMAGES, NUM_POINTS = 6, 40


@dataclass
class Scene:
    """A made-up reconstruction, with all files that `write_report` reads."""

    root: Path
    model: pycolmap.Reconstruction | None
    names: list[str]
    pairs: list[tuple[str, str]]
    summary: dict = field(default_factory=dict)

    def write(self) -> Path:
        return write_report(
            self.root / "out",
            self.model,
            self.root / "images",
            self.pairs,
            self.root / "features.h5",
            self.root / "matches.h5",
            self.root / "database.db",
            self.summary,
        )


def make_scene(tmp_path: Path) -> Scene:
    """Write the files of a reconstruction of photos without noise."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig = 1, 1
    options.num_frames_per_rig, options.num_points3D = NUM_IMAGES, NUM_POINTS
    options.camera_width, options.camera_height = 160, 120
    options.camera_params = [200.0, 80.0, 60.0, 0.0]
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        pycolmap.set_random_seed(0)
        model = pycolmap.synthesize_dataset(options, database)
        images = {image.image_id: image.name for image in database.read_all_images()}
        with h5py.File(tmp_path / "features.h5", "w") as features:
            for image_id, name in images.items():
                keypoints = database.read_keypoints(image_id)[:, :2] - 0.5
                features[f"{name}/keypoints"] = keypoints.astype(np.float32)
        pairs = []
        with h5py.File(tmp_path / "matches.h5", "w") as file:
            for pair_id, matches in zip(*database.read_all_matches(), strict=True):
                image_id0, image_id1 = pycolmap.pair_id_to_image_pair(pair_id)
                pair = images[image_id0], images[image_id1]
                matches0 = np.full(database.num_keypoints_for_image(image_id0), -1)
                matches0[matches[:, 0]] = matches[:, 1]
                file[f"{names_to_pair(*pair)}/matches0"] = matches0
                pairs.append(pair)
    names = sorted(images.values())
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "images" / name, np.full((120, 160, 3), 99, dtype=np.uint8))
    return Scene(tmp_path, model, names, pairs)


class Page(HTMLParser):
    """What a browser sees: elements, texts of table rows, the data, and all addresses."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._script: str | None = None
        self._in_cell = False
        self.data: dict = {}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for key, value in attributes if key in ("src", "href")]
        if tag == "script":
            self._script = dict(attributes).get("id", "code")
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None
        elif tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data):
        if self._script == "data":
            self.data = json.loads(data)
        elif self._script is None:
            self.text += data
            if self._in_cell:
                self.rows[-1][-1] += data

    def row_of(self, name: str) -> list[str]:
        """Return the cells of a photo's row in the last table."""
        return [row for row in self.rows if len(row) == 6 and row[1] == name][-1]

    def array(self, text: str, dtype: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(text), dtype=dtype)

    def matrix(self, key: str) -> np.ndarray:
        rows = self.data["matrix"]["rows"]
        return self.array(self.data["matrix"][key], "<i4").reshape(rows, rows)
