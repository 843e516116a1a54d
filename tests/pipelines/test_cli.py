"""The command `sfm-matchers`, and what all command lines have in common."""

from __future__ import annotations

import importlib
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image

from pipelines import cli, command, sfm
from pipelines.command import run_command, set_up_log
from pipelines.hloc import build_parser
from pipelines.options import Parser, matcher_name
from sfm_matchers import __version__
from sfm_matchers.choices import SCENES
from sfm_matchers.errors import InputError
from sfm_matchers.files.colmap_database import quiet_colmap
from sfm_matchers.photos.folders import OUTPUT_MARKS
from sfm_matchers.runs.workspace import Workspace
from sfm_matchers.synthetic import KINDS


@pytest.fixture(autouse=True)
def as_before() -> Any:
    """Leave the package's log as it was."""
    log = logging.getLogger("sfm_matchers")
    level, handlers = log.level, list(log.handlers)
    yield
    log.setLevel(level)
    log.handlers = handlers


def parser() -> Parser:
    made = Parser(prog="sfm-matchers sfm")
    made.add_argument("--image_dir", type=Path, required=True)
    made.add_argument("--outputs", type=Path, required=True)
    return made


# Options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--image_dir", "a", "--outputs", "b"],
        ["--image-dir", "a", "--output", "b"],
        ["--image_path=a", "--output_path=b"],
        ["--images", "a", "--output-dir", "b"],
    ],
)
def test_options_have_the_spellings_of_colmap_and_hloc(arguments: list[str]) -> None:
    assert parser().parse(arguments) == {"image_dir": Path("a"), "outputs": Path("b")}


@pytest.mark.parametrize(
    ("called", "shown"),
    [("/usr/bin/sfm-matchers", "sfm-matchers sfm --"), ("sfm.py", "python -m pipelines.sfm --")],
)
def test_examples_in_a_help_are_of_the_command_that_was_called(
    called: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [called])
    text = sfm.build_parser().format_help()
    assert shown in text
    assert ("python -m" in text) == (called == "sfm.py")


@pytest.mark.parametrize("spelling", ["--output", "--outputs", "--output-path", "--out"])
def test_a_command_with_another_name_takes_them_too(spelling: str) -> None:
    made = Parser(prog="x")
    steps = made.add_subparsers(dest="step", required=True)
    steps.add_parser("one").add_argument("--output")
    assert made.parse(["one", spelling, "b"]) == {"step": "one", "output": "b"}


def test_an_option_of_its_own_is_no_spelling_of_another() -> None:
    made = parser()
    made.add_argument("--images")
    given = made.parse(["--image_dir", "a", "--outputs", "b", "--images", "c"])
    assert given["images"] == "c"
    assert given["image_dir"] == Path("a")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--image_dir", "a", "--outputs", "b", "--outptus", "c"],
        ["--image_dir", "a", "--outptus", "c"],  # which is why another is missing
        ["--image_dir", "a", "--outptus=c"],
    ],
)
def test_an_unknown_option_is_answered_in_two_lines(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parser().parse(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: unknown option --outptus: did you mean --outputs?",
        "help: sfm-matchers sfm --help",
    ]


def test_so_it_is_in_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["hloc", "match_features", "--paris", "pairs.txt"])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: unknown option --paris: did you mean --pairs?"
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hloc", "match_feature"], "did you mean match_features?"),
        (["export", "modell"], "did you mean model?"),
        (["sfm", "--image_dir", "a", "--outputs", "b", "--quality", "hihg"], "did you mean high?"),
        (["sfm", "--images", "My", "photos", "--out", "b"], "quote a path with spaces"),
        (["export", "model", "a", "--out", "b", "--formats", "ply", "gsplat"], "list with commas"),
        (["--verison"], "did you mean --version?"),
        (["export"], "are required: model | onnx"),
        (["evaluate"], "are required: pairs | homographies | poses"),
        (["sfm", "--image_dir", "", "--outputs", "b"], "--image_dir: an empty path"),
        (
            ["hloc", "extract_features", "--image_dir", "", "--export_dir", "b"],
            "--image_dir: an empty path",
        ),
        (["export", "model", "a", "--output="], "--output: an empty path"),
    ],
)
def test_what_was_probably_meant_is_said(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = cli.main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    lines = capsys.readouterr().err.splitlines()
    assert said in lines[0]
    assert len(lines) == 2


def test_steps_are_named_with_dashes_and_in_any_case_too(tmp_path: Path) -> None:
    parsed = build_parser().parse_args(
        ["Extract-Features", "--image-dir", "a-b", "--export-dir", "c-d", "--conf", "sift"]
    )
    assert (str(parsed.image_dir), str(parsed.export_dir)) == ("a-b", "c-d")


def test_other_mistakes_take_two_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["sfm"], ["sfm", "--images"], ["export"], ["hloc", "x"], ["demo", "extra"]):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(":")[0] for line in lines] == ["error", "help"]


def test_how_much_is_said() -> None:
    log = logging.getLogger("sfm_matchers")
    given = ["--image_dir", "a", "--outputs", "b"]
    for extra, level in (
        (["--quiet"], logging.WARNING),
        (["--verbose"], logging.DEBUG),
        ([], logging.INFO),
    ):
        assert parser().parse([*given, *extra]).keys() == {"image_dir", "outputs"}
        assert log.level == level
    assert len([one for one in log.handlers if isinstance(one, command._Stderr)]) == 1


def test_colmaps_log_is_silent_unless_all_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pycolmap.logging, "minloglevel", 0)
    for verbose, level in ((True, 0), (False, int(pycolmap.logging.ERROR))):
        set_up_log(verbose=verbose)
        with quiet_colmap():
            assert pycolmap.logging.minloglevel == level
    assert pycolmap.logging.minloglevel == 0


def test_quiet_leaves_nothing_but_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("a.jpg\nb.jpg\n")
    pairs = ["hloc", "pairs_from_exhaustive", "--image_list", str(tmp_path / "names.txt")]
    pairs += ["--output", str(tmp_path / "pairs.txt")]
    assert cli.main([*pairs, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "pairs.txt").read_text().split() == ["a.jpg", "b.jpg"]
    assert cli.main(pairs) == 0
    assert capsys.readouterr().out == f"1 pairs: {tmp_path / 'pairs.txt'}\n"


def test_commands_whose_product_is_files_ask_whether_to_print() -> None:
    folder = Path(cli.__file__).parent
    printing = {
        path.stem
        for path in folder.rglob("*.py")
        if re.search(r"\bprint\(", path.read_text(encoding="utf-8"))
    }
    assert printing == {"cli", "options", "command", "doctor", "evaluate"}


def test_the_log_of_others_is_not_touched(capsys: pytest.CaptureFixture[str]) -> None:
    before = list(logging.getLogger().handlers), logging.getLogger().level
    set_up_log()
    logging.getLogger("sfm_matchers.x").info("ours")
    logging.getLogger("others").info("theirs")
    assert (list(logging.getLogger().handlers), logging.getLogger().level) == before
    assert capsys.readouterr().err == "ours\n"


def test_matchers_are_named_in_any_case(tmp_path: Path) -> None:
    assert matcher_name("JamMa") == "jamma"
    assert matcher_name("ALIKED+MambaGlue") == "aliked+mambaglue"
    assert matcher_name("AUTO") == "auto"
    assert matcher_name("My/Conf.yaml") == "My/Conf.yaml"
    given = sfm.build_parser().parse(
        ["--images", "a", "--out", "b", "--matcher", "SIFT", "--quality", "Low"]
    )
    assert (given["matcher"], given["quality"]) == ("sift", "low")


def test_the_demos_places_are_those_that_there_are() -> None:
    assert set(SCENES) == set(KINDS)


# Commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_and_quiet(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([name.replace("_", "-"), "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    assert "--quiet" in printed
    assert "pipelines." not in printed.replace("python -m pipelines.", "")
    main = importlib.import_module(f"pipelines.{name}").main
    with pytest.raises(SystemExit) as end:
        main(["--no_such_option"])
    assert end.value.code == 2


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["help", "sfm"])
    assert end.value.code == 0
    assert "--image_dir" in capsys.readouterr().out


def test_every_pipeline_is_a_command() -> None:
    folder = Path(cli.__file__).parent
    helpers = {"__init__", "cli", "command", "options"}
    found = {path.stem for path in (*folder.glob("*.py"), folder / "hloc")}
    assert found - helpers == set(cli.COMMANDS)


def test_an_unknown_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["lokalize"]) == 2
    assert "did you mean localize?" in capsys.readouterr().err
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    capsys.readouterr()
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sfm-matchers {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "--help"] for name in cli.COMMANDS), ["map", "build", "-h"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        f"import sys\nfrom pipelines.cli import main\ntry: main({arguments})\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'pycolmap', 'numpy', 'h5py', 'cv2') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip().endswith("[]")


def test_help_comes_at_once() -> None:
    resource = pytest.importorskip("resource")  # seconds of a processor, on a busy machine too
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command_line = [sys.executable, "-m", "sfm_matchers", "sfm", "--help"]
    printed = subprocess.run(command_line, capture_output=True, text=True, check=True).stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 0.5
    assert printed.startswith("usage: sfm-matchers sfm ")


def test_bad_input_is_status_2_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent, out = str(tmp_path / "absent"), str(tmp_path / "out")
    for arguments in (
        ["sfm", "--images", absent, "--output", out],
        ["localize", "--map", absent, "--map_images", absent, "--queries", absent, "--out", out],
        ["refine", "--model", absent, "--images", absent, "--output", out],
        ["export", "model", absent, "--output", out],
        ["hloc", "pairs_from_covisibility", "--model", absent, "--output", out, "--num-matched=1"],
        ["aachen", "--dataset", absent, "--out", out],
        ["inloc", "--dataset", absent, "--out", out],
        ["evaluate", "poses", "--poses", absent, "--truth", absent],
        ["train", "--matcher", "JamMa", "--images", absent, "--out", out, "--init", absent],
        ["pack_weights", "--weights", absent, "--output", out],
    ):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")


# log.txt ------------------------------------------------------------------------------------------


def test_a_run_leaves_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "c.png").write_bytes(b"no photo")
    given = ["--images", str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--quiet"]
    assert sfm.main([*given, "--matcher", "sift"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "c.png" in said.err
    assert "Cameras" not in said.err
    assert sfm.main([*given, "--matcher", "nothing"]) == 2
    text = (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")
    first, second = text.strip().split("\n\n== ") if "\n\n== " in text else text.split("== ")[1:]
    assert f"sfm-matchers {__version__}" in first
    assert "pycolmap" in first
    assert "command line: " in first
    assert "matcher='sift'" in first
    assert "WARNING" in first
    assert "c.png" in first
    assert "ended with status 1" in first
    assert "error: unknown matcher 'nothing'" in second


def test_a_log_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "log.txt").mkdir()
    assert run_command(tmp_path, lambda: 0, name="x") == 0


def test_an_error_is_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def job() -> int:
        logging.getLogger("sfm_matchers.x").warning("beware")
        raise InputError("wrong")

    assert run_command(tmp_path, job, name="x") == 2
    text = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert "WARNING beware\n" in text
    assert "error: wrong, after" in text
    assert capsys.readouterr().err.endswith("error: wrong\n")


def test_to_start_afresh_keeps_the_log(tmp_path: Path) -> None:
    for name in (*OUTPUT_MARKS, "model.png"):
        (tmp_path / name).touch()

    def job() -> int:
        Workspace(tmp_path).clear()
        return 0

    assert run_command(tmp_path, job, name="x") == 0
    assert not (tmp_path / "model.png").exists()
    assert "ended with status 0" in (tmp_path / "log.txt").read_text(encoding="utf-8")
