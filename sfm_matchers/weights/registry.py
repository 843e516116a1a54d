"""Every checkpoint this package knows of: where it comes from, what it is, what it may be used for.

A checkpoint is named `<subject>/<source>`: `jamma/official`, `eloftr/authors`,
`mambaglue-aliked/bundled`. The official ones are listed here; the bundled ones are found in the
folder `bundled` beside this file and describe themselves in their safetensors header.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from sfm_matchers.errors import WeightsError, one_line

BUNDLED_DIR = Path(__file__).with_name("bundled")

MAX_HEADER = 100_000_000  # bytes, as in the safetensors library

NON_COMMERCIAL = "Magic Leap, non-commercial"

LICENCE_ALLOWS = {
    "MIT": "any use, commercial too; keep the notice",
    "Apache-2.0": "any use, commercial too; keep the notices",
    "BSD-3-Clause": "any use, commercial too; keep the notice",
    NON_COMMERCIAL: "academic and non-profit research only; no redistribution",
}

WITHOUT_WEIGHTS = ("sift", "nearest_neighbor", "colmap_nearest_neighbor")
"""Front-ends and matchers that need none."""


@dataclass(frozen=True)
class Checkpoint:
    """One file of weights.

    `size` (bytes) and `sha256` are None where nobody has published them: such a file is accepted
    as it arrives, and no other one later. `caveat` is what a user must hear at load, `note` what is
    good to know.
    """

    name: str
    network: str  # a key of `networks.table.NETWORKS`, or the front-end's name
    file_name: str
    url: str  # "" for bundled files
    licence: str
    trained_on: str
    layout: str  # whose key names the file carries
    features: str | None = None  # the front-end that a sparse matcher was trained on
    size: int | None = None
    sha256: str | None = None
    note: str = ""
    caveat: str = ""
    by_hand: bool = False  # `url` is a page with a download button, not the file
    config: dict[str, float] = field(default_factory=dict)  # as of `WeightsMetadata`

    @property
    def allows(self) -> str:
        """What the licence allows, in a few words."""
        return LICENCE_ALLOWS.get(self.licence, "read the licence")

    @property
    def subject(self) -> str:
        """The part of the name before the slash: what the weights are for."""
        return self.name.partition("/")[0]

    @property
    def source(self) -> str:
        """The part of the name after the slash: the value of `--weights` that means this file."""
        return self.name.partition("/")[2]

    @property
    def is_bundled(self) -> bool:
        return not self.url


OFFICIAL = (
    Checkpoint(
        name="jamma/official",
        network="jamma",
        file_name="jamma.ckpt",
        url="https://github.com/leoluxxx/JamMa/releases/download/v0.1/jamma.ckpt",
        licence="MIT",
        trained_on="MegaDepth, 832 px",
        layout="authors, training checkpoint, entry 'state_dict', keys backbone.* and matcher.*",
        note="authors: MegaDepth-1500 pose AUC@5/10/20 of 64.2 / 77.4 / 86.5 at 832 px",
        config={"pad_to_square": True},  # as in their training
    ),
    Checkpoint(
        name="mambaglue-superpoint/official",
        network="mambaglue",
        features="superpoint",
        file_name="superpoint_mambaglue.tar",
        url="https://github.com/url-kaist/MambaGlue/releases/download/v0.1/superpoint_mambaglue.tar",
        licence="Apache-2.0",
        trained_on="homographies, then MegaDepth",
        layout="glue-factory, entry 'model', keys matcher.transformers.*",
        note="the repository's licence; the weights have no statement of their own, and the "
        "SuperPoint keypoints they need are non-commercial",
        caveat="the public MambaGlue weights are a pre-publication version that its authors place "
        "below LightGlue: do not judge the method by them",
    ),
    Checkpoint(
        name="mambaglue-aliked/lightglue",
        network="mambaglue",
        features="aliked",
        file_name="aliked_lightglue.pth",
        url="https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/aliked_lightglue.pth",
        licence="Apache-2.0",
        trained_on="homographies, then MegaDepth",
        layout="LightGlue's authors, keys transformers.*",
        size=47_632_827,
        sha256="d975e965b105311a6143194852297dff4f02aea5cc2e10cecfed966ca0e22503",
        note="LightGlue's weights in MambaGlue's shape: the Mamba branch is silent",
    ),
    Checkpoint(
        name="mambaglue-disk/lightglue",
        network="mambaglue",
        features="disk",
        file_name="disk_lightglue.pth",
        url="https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/disk_lightglue.pth",
        licence="Apache-2.0",
        trained_on="homographies, then MegaDepth",
        layout="LightGlue's authors, keys self_attn.*, cross_attn.*",
        size=47_631_405,
        sha256="b5b21d47ea24f2c5e501aec9c91b9716e4c8c3429a4dc1e615c133c4c9378335",
        note="LightGlue's weights in MambaGlue's shape: the Mamba branch is silent",
    ),
    Checkpoint(
        name="eloftr/official",
        network="eloftr",
        file_name="efficientloftr.safetensors",
        url="https://huggingface.co/zju-community/efficientloftr/resolve/main/model.safetensors",
        licence="Apache-2.0",
        trained_on="MegaDepth, 832 px",
        layout="transformers, keys efficientloftr.* and refinement_layer.*",
        note="authors: MegaDepth-1500 pose AUC@5/10/20 of 56.4 / 72.2 / 83.5 (full), "
        "55.4 / 71.4 / 82.9 (opt); the licence is that of 2025, read it again where it matters",
    ),
    Checkpoint(
        name="eloftr/authors",
        network="eloftr",
        file_name="eloftr_outdoor.ckpt",
        url="https://drive.google.com/drive/folders/1GOw6iVqsB-f1vmG6rNmdCcgwfB4VZ7_Q",
        licence="Apache-2.0",
        trained_on="MegaDepth, 832 px",
        layout="authors, training checkpoint, entry 'state_dict', keys matcher.*",
        note="the same weights as eloftr/official, in the authors' own file",
        by_hand=True,
    ),
    Checkpoint(
        name="aliked-n16/official",
        network="aliked-n16",
        file_name="aliked-n16.pth",
        url="https://github.com/Shiaoming/ALIKED/raw/main/models/aliked-n16.pth",
        licence="BSD-3-Clause",
        trained_on="MegaDepth and homographies",
        layout="authors, state dict",
        size=2_738_091,
        sha256="5be8704840ed662d9d8c561bf7279c222092674e7eb05fd0feab94899e9d82f2",
    ),
    Checkpoint(
        name="aliked-n16rot/official",
        network="aliked-n16rot",
        file_name="aliked-n16rot.pth",
        url="https://github.com/Shiaoming/ALIKED/raw/main/models/aliked-n16rot.pth",
        licence="BSD-3-Clause",
        trained_on="MegaDepth and homographies, photos turned against each other",
        layout="authors, state dict",
        size=2_738_325,
        sha256="ddf3abbf38e86f6a74540d214e1a9712c54b2d8551abc864542199f2347d7332",
    ),
    Checkpoint(
        name="disk/official",
        network="disk",
        file_name="depth-save.pth",
        url="https://raw.githubusercontent.com/cvlab-epfl/disk/master/depth-save.pth",
        licence="Apache-2.0",
        trained_on="MegaDepth",
        layout="authors, entry 'extractor'",
        size=4_375_832,
        sha256="9c2ee4ded238892dfa51569941372601e35e4a74aa6f84ea80053d2ab1c07abe",
    ),
    Checkpoint(
        name="superpoint/official",
        network="superpoint",
        file_name="superpoint.safetensors",
        url="https://huggingface.co/magic-leap-community/superpoint/resolve/main/model.safetensors",
        licence=NON_COMMERCIAL,
        trained_on="synthetic shapes, then MS-COCO",
        layout="transformers, SuperPointForKeypointDetection",
    ),
)


@dataclass(frozen=True)
class WeightsMetadata:
    """What a file of our own weights, bundled or trained, says of itself in its header.

    `config` holds fields of the network's config that fit these weights better than its defaults.
    """

    network: str
    trained_on: str
    steps: int
    metrics: dict[str, float]
    features: str | None = None
    licence: str = "Apache-2.0"
    note: str = ""
    config: dict[str, float] = field(default_factory=dict)

    def to_header(self) -> dict[str, str]:
        """Return the header entries; safetensors stores strings only."""
        return {
            "network": self.network,
            "features": self.features or "",
            "licence": self.licence,
            "trained_on": self.trained_on,
            "steps": str(self.steps),
            "metrics": json.dumps(self.metrics, sort_keys=True),
            "note": self.note,
            "config": json.dumps(self.config, sort_keys=True),
        }

    @classmethod
    def from_file(cls, path: Path) -> WeightsMetadata | None:
        """Read the header of a safetensors file; None if it is not one that we wrote.

        Raises:
            WeightsError: the file cannot be read, or the header is damaged.
        """
        try:
            header = _read_header(path)
            if "network" not in header or "steps" not in header:
                return None
            metrics, config = (
                _numbers(header.get(key, "{}"), key) for key in ("metrics", "config")
            )
            return cls(
                network=header["network"],
                features=header["features"] or None,
                licence=header["licence"],
                trained_on=header["trained_on"],
                steps=int(header["steps"]),
                metrics=metrics,
                note=header["note"],
                config=config,
            )
        except Exception as error:  # garbage can make a reader fail in any way
            raise WeightsError(
                f"{path}: unreadable safetensors header ({one_line(error)})"
            ) from error


def _read_header(path: Path) -> dict[str, str]:
    """Read the user's entries of a safetensors header; its library would load all of numpy."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, MAX_HEADER):
            raise ValueError("it is longer than the file, or than a header can be")
        header = json.loads(file.read(length)).get("__metadata__", {})
    if not all(isinstance(value, str) for value in header.values()):
        raise ValueError("its entries are not text")
    return dict(header)


def _numbers(text: str, key: str) -> dict[str, float]:
    """Finite numbers by name, from JSON; truths count too."""
    numbers = json.loads(text)
    if not isinstance(numbers, dict) or not all(
        isinstance(value, int | float) and math.isfinite(value) for value in numbers.values()
    ):
        raise ValueError(f"{key} are not numbers by name")
    return numbers


def subject_name(network: str, features: str | None = None) -> str:
    """Return the first part of a checkpoint's name.

    >>> subject_name("mambaglue", "aliked")
    'mambaglue-aliked'
    """
    return f"{network}-{features}" if features else network


def needs_weights(subject: str) -> bool:
    """Return False for front-ends and matchers that compute and have learned nothing."""
    return subject not in WITHOUT_WEIGHTS


def bundled_checkpoints() -> list[Checkpoint]:
    """List the weights that ship with the package, sorted by name.

    Raises:
        WeightsError: a file in the bundled folder is damaged or not one of ours.
    """
    checkpoints = []
    for path in sorted(BUNDLED_DIR.glob("*.safetensors")):
        metadata = WeightsMetadata.from_file(path)
        if metadata is None:
            raise WeightsError(f"{path}: a bundled file must name its network in its header")
        scores = ", ".join(f"{name} {value:g}" for name, value in metadata.metrics.items())
        checkpoints.append(
            Checkpoint(
                name=f"{subject_name(metadata.network, metadata.features)}/bundled",
                network=metadata.network,
                features=metadata.features,
                file_name=path.name,
                url="",
                licence=metadata.licence,
                trained_on=metadata.trained_on,
                layout="sfm_matchers, half precision",
                size=path.stat().st_size,
                note="; ".join(filter(None, [scores, metadata.note])),
            )
        )
    return checkpoints


def all_checkpoints() -> list[Checkpoint]:
    """List the bundled and the official checkpoints."""
    return [*bundled_checkpoints(), *OFFICIAL]


def find_checkpoint(name: str) -> Checkpoint | None:
    """Return the checkpoint of that name, or None.

    >>> find_checkpoint("jamma/official").licence
    'MIT'
    """
    # The bundled files are opened only for a bundled name, so that a damaged one harms no other.
    known = bundled_checkpoints() if name.endswith("/bundled") else OFFICIAL
    return next((entry for entry in known if entry.name == name), None)


def registered_checkpoint(name: str) -> Checkpoint:
    """Return the checkpoint of a name that is known to be here."""
    found = find_checkpoint(name)
    assert found is not None, name
    return found


def default_source(subject: str) -> str:
    """Return the `--weights` to use where the user names none: bundled, else the authors'.

    >>> default_source("mambaglue-superpoint")
    'official'
    """
    has_official = any(entry.name == f"{subject}/official" for entry in OFFICIAL)
    is_bundled = any(entry.subject == subject for entry in bundled_checkpoints())
    return "official" if has_official and not is_bundled else "bundled"
