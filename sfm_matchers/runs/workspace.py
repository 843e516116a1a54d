"""The output folder of a run: where everything lies, what is done and from what, and how long it
took."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sfm_matchers.confs import Conf, SparseConf
from sfm_matchers.exports import remove_exports
from sfm_matchers.files.fingerprints import content_hash
from sfm_matchers.files.locks import exclusive, one_at_a_time
from sfm_matchers.files.notes import read_memory, write_memory
from sfm_matchers.files.pair_lists import Pair, write_pairs
from sfm_matchers.files.replacing import (
    files_below,
    has_unfinished_log,
    make_way,
    remove_left_behind,
    temporary_folder,
    unless_in_vain,
)
from sfm_matchers.files.text import written_whole
from sfm_matchers.photos.checked import NOTE as PHOTOS
from sfm_matchers.photos.folders import REPORT_PICTURES, is_output

logger = logging.getLogger("sfm_matchers.pipelines")

FRAMES_MARK = "video.json"  # what the frames of a video come from


class Workspace:
    """The output folder of a run. Nobody else makes up a name in it.

    A note says what a step was computed from, and the hash of each file that it made. It goes
    before its files are replaced, and comes back when they are complete, so that it never tells
    of others.

    Attributes:
        path: the folder.
        has_worked: whether a step has changed results.

    >>> workspace = Workspace("out")
    >>> workspace.model.as_posix()
    'out/sparse/0'
    """

    def __init__(self, outputs: str | Path) -> None:
        """Look at a folder, which need not be there yet."""
        self.path = Path(outputs)
        self.has_worked = False
        self._spent: dict[str, float] = {}  # seconds of this run
        self._new: set[str] = set()  # steps that did not find all done
        self._made: set[str] = set()  # steps that this run has finished
        self._parent: Workspace | None = None  # of a trial
        # Of every run.
        self.photos = self.path / PHOTOS  # which can be decoded
        self.notes = self.path / "steps.json"  # what is done, and from what
        self.report = self.path / "report.html"
        self.pictures = tuple(self.path / name for name in REPORT_PICTURES)
        self.model_picture = self.pictures[0]
        self.log = self.path / "log.txt"
        # Of a model of photos.
        self.frames = self.path / "frames"  # the photos, where they come out of a video
        self.database = self.path / "database.db"
        self.look_alikes = self.path / "look_alikes.json"  # pairs of two places
        self.models = self.path / "sparse"
        self.model = self.models / "0"  # the largest
        self.cameras = self.path / "cameras.json"  # which photos share one
        self.camera_models = self.path / "camera_models.json"
        self.georeferenced = self.path / "georeferenced"
        # Of photos in a map.
        self.denied_poses = self.path / "denied_poses.json"  # of the map, by its own matches
        self.poses = self.path / "poses.txt"
        self.extended_map = self.path / "model"

    def owns_frames(self) -> bool:
        """Return whether a run has written the folder of the frames."""
        if not self.frames.is_dir():
            return False
        return (self.frames / FRAMES_MARK).is_file() or self.frames.name in read_memory(self.notes)

    def __repr__(self) -> str:
        """Return the folder."""
        return f"Workspace({str(self.path)!r})"

    # Files that have a name of their own. A label is the stem of a list of pairs, as in hloc.

    def pairs(self, label: str) -> Path:
        """List of pairs; `label` begins with ``pairs-`` where this program makes the list."""
        return self.path / f"{label}.txt"

    def features(self, conf: Conf, label: str = "") -> Path:
        """Keypoints; with `label` those of the queries of one list of pairs.

        Matchers without a detector have none before their matches: theirs bear the matches' name.
        """
        if isinstance(conf, SparseConf):
            return self.path / f"{conf.features.output}.h5"
        return self.path / f"feats-{_stem(conf)}{f'_{label}' if label else ''}.h5"

    def matches(self, conf: Conf, label: str) -> Path:
        """Matches between keypoints."""
        return self.path / f"{conf.output}_{label}.h5"

    def correspondences(self, conf: Conf, label: str) -> Path:
        """Matches of a matcher without a detector, before they are turned into keypoints."""
        return self.path / f"correspondences-{_stem(conf)}_{label}.h5"

    def joined(self, label: str) -> tuple[Path, Path]:
        """Keypoints and matches of two matchers."""
        return self.path / "feats-auto.h5", self.path / f"matches-auto_{label}.h5"

    def global_features(self, kind: str) -> Path:
        """Global descriptors for retrieval."""
        return self.path / f"global-feats-{kind}.h5"

    def triangulated(self, conf: Conf) -> Path:
        """Model of a map whose poses are known."""
        return self.path / f"map-{conf.name}"

    def submission(self, benchmark: str, conf: Conf, label: str) -> Path:
        """Poses as a benchmark wants them."""
        return self.path / f"{benchmark}_{conf.name}_{label.removeprefix('pairs-query-')}.txt"

    def write_pairs(self, label: str, pairs: Sequence[Pair]) -> Path:
        """Write a list of pairs."""
        path = self.pairs(label)
        write_pairs(path, pairs)
        return path

    def model_folders(self) -> list[Path]:
        """The models that are there, the largest first."""
        numbered = (path for path in self.models.iterdir() if path.name.isdecimal())
        return sorted(numbered, key=lambda path: int(path.name))

    # What is done.

    @contextlib.contextmanager
    def timed(self, name: str, *, always_works: bool = False) -> Iterator[None]:
        """Note the seconds of the block as those of a step; those of one name add up.

        Args:
            name: of the step.
            always_works: it leaves nothing for the next run, so that its seconds are always new.
        """
        if self._parent is not None:
            with self._parent.timed(name, always_works=True):
                yield
            return
        before, start = self._results(), time.monotonic()
        yield
        self._spent[name] = self._spent.get(name, 0.0) + time.monotonic() - start
        self.has_worked = self.has_worked or self._results() != before
        if self.has_worked or always_works:
            self._new.add(name)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by step: of a step that found all done, those of the run that did it."""
        known = dict(read_memory(self.notes).get(_SECONDS, {}))
        kept = {} if self.has_worked else known
        return kept | {
            name: spent if name in self._new else known.get(name, spent)
            for name, spent in self._spent.items()
        }

    def keep_seconds(self) -> None:
        """Note the seconds for runs that find all done."""
        notes, seconds = read_memory(self.notes), self.seconds
        if seconds != notes.get(_SECONDS):
            write_memory(self.notes, {**notes, _SECONDS: seconds})

    def _results(self) -> dict[Path, tuple[int, int] | bytes]:
        """What tells whether a step has changed the files that runs make once."""
        found: dict[Path, tuple[int, int] | bytes] = {}
        for pattern in _RESULTS:
            for path in self.path.glob(pattern):
                with contextlib.suppress(OSError):
                    status = path.stat()
                    if path.suffix == ".json":  # small, and written each time
                        found[path] = path.read_bytes()
                    else:  # new files take the places of old ones; SQLite touches what it reads
                        found[path] = (status.st_ino, status.st_size)
        return found

    def is_done(self, name: str, source: str) -> bool:
        """True if a finished step was computed from `source` and its files are as it made them.

        If it must be done again this says why, and forgets the note.
        """
        note = read_memory(self.notes).get(name)
        if note is None:
            return False
        if note["source"] != source:
            if name not in self._made:  # else this run itself goes on with more
                logger.info("%s: photos, matches or settings have changed, it is made again", name)
        elif (changed := self._changed_file(note)) is not None:
            logger.warning("%s is missing or damaged: %s is made again", changed, name)
        else:
            return True
        self.forget(name)
        return False

    def set_done(self, name: str, source: str, *results: Path) -> None:
        """Note what a finished step was computed from, and the files and folders it has made."""
        files = [file for result in results for file in files_below(result)]
        note = {
            "source": source,
            "results": [result.relative_to(self.path).as_posix() for result in results],
            "files": {file.relative_to(self.path).as_posix(): content_hash(file) for file in files},
        }
        self._made.add(name)
        known = {**read_memory(self.notes), name: note}
        write_memory(self.notes, {**known, _SECONDS: self.seconds})

    def forget(self, *names: str) -> None:
        """Delete the notes of steps whose results are about to be replaced."""
        notes = read_memory(self.notes)
        kept = {name: note for name, note in notes.items() if name not in names}
        if kept != notes:
            write_memory(self.notes, kept)

    def _changed_file(self, note: dict[str, Any]) -> Path | None:
        for name in note["results"]:
            if not (self.path / name).exists():
                return self.path / name
        for name, known in note["files"].items():
            path = self.path / name
            try:
                if not path.is_file() or content_hash(path) != known:  # a pipe never ends
                    return path
                if has_unfinished_log(path):
                    return path
            except OSError:
                return path
        return None

    # The folder as a whole.

    @contextlib.contextmanager
    def alone(self, shard: str | None = None) -> Iterator[None]:
        """Keep other runs out of the folder, which is made; see `files.locks.exclusive`.

        A folder that is new goes again if the input proves wrong before anything is made of it.

        Args:
            shard: what this run does beside others.

        Raises:
            InputError: another run works in it, it cannot be written to, or something lies in the
                place of a file.
        """
        with unless_in_vain(self.path, _TRACES), exclusive(self.path, shard):
            if shard is None:
                is_marked = self.notes.is_file()
                steps = read_memory(self.notes).values()
                if is_marked and not self.notes.exists():  # it was damaged
                    write_memory(self.notes, {})  # the folder stays one of a run
                noted = {self.path / name for step in steps for name in step.get("files", ())}
                tables = {".bin", ".h5"} if (self.path / "map.json").is_file() else set()
                for pattern in _FILES:
                    # Without a star, `glob` passes over links that lead nowhere.
                    one = [self.path / pattern]
                    for path in self.path.glob(pattern) if "*" in pattern else one:
                        is_missed = path in noted or path.suffix in tables
                        make_way(path, is_told=not is_missed)
                for pattern in ("database.db", "map-*/database.db"):
                    for path in self.path.glob(pattern):
                        _make_writable(path)
            yield

    def one_at_a_time(self) -> contextlib.AbstractContextManager[None]:
        """Wait until no run of another shard is in this block."""
        return one_at_a_time(self.path)

    @contextlib.contextmanager
    def trial(self) -> Iterator[Workspace]:
        """Give an empty workspace inside this one, for results that may be better; it goes after
        the block. Its seconds count as those of this one."""
        with temporary_folder(self.path / "cameras") as folder:
            trial = Workspace(folder)
            trial._parent = self
            yield trial

    def clear(self) -> None:
        """Delete what reconstructions write, and nothing else; the log goes on."""
        if not self.path.is_dir():
            return
        remove_exports(self.path)
        own = [self.database, self.models, self.cameras, self.camera_models, self.georeferenced]
        own.append(self.look_alikes)
        if is_output(self.path):  # else files of such names may be anybody's
            own += self.pictures
        if self.owns_frames():
            own.append(self.frames)
        own += [self.photos, self.notes, self.report]
        for pattern in _CLEARED:
            own += self.path.glob(pattern)
        remove_left_behind(self.path)
        for path in own:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


_SECONDS = "seconds"  # among the notes
_TRACES = (".lock", "log.txt", PHOTOS, "pairs-*.txt")  # of a run that has only looked at its input
_RESULTS = (
    f"frames/{FRAMES_MARK}",
    PHOTOS,
    "*.h5",
    "database.db",
    "sparse/*/*",
    "map-*/*",
    "georeferenced/*",
)

# With the part files and the seal of each HDF5 file.
_HDF5 = ("feats-*.h5", "global-feats-*.h5", "matches-*.h5", "correspondences-*.h5")
_CLEARED = (
    "pairs-*.txt",
    "database.db*",
    *(f"{pattern}*" for pattern in _HDF5),
    *(f".{pattern}.sha256" for pattern in _HDF5),
)

# Single files: a folder or a pipe of such a name stands in the way.
_FILES = (
    PHOTOS,
    *REPORT_PICTURES,
    "cameras.json",
    "camera_models.json",
    "look_alikes.json",
    "denied_poses.json",
    "steps.json",
    "map.json",
    "report.html",
    "log.txt",
    "pairs-*.txt",
    "poses.txt",
    "poses_log.jsonl",
    "database.db",
    *_HDF5,
    *(f".{pattern}.sha256" for pattern in _HDF5),
    "features.h5",
    "retrieval.h5",
    "model/*.bin",
    "map-*/*.bin",
    "map-*/database.db",
)


def _make_writable(path: Path) -> None:
    """Put a copy in the place of a database that must not be written to: SQLite writes to all."""
    if os.access(path, os.R_OK) and not os.access(path, os.W_OK):
        with written_whole(path) as copy:
            shutil.copyfile(path, copy)


def _stem(conf: Conf) -> str:
    return conf.output.removeprefix("matches-")
