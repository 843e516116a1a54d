"""What the documents say can be done: commands exist, links lead somewhere, pages stay short."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")]
    + list((ROOT / "sfm_matchers" / "weights" / "bundled").glob("*.md"))
)
# Pages for users: the notes are logs, whose commands are those of their day.
TODAY = [page for page in PAGES if DOCS / "notes" not in page.parents and page.suffix == ".md"]

OURS = ("sfm_matchers", "pipelines", "benchmarks")
MAX_COLUMNS = 120  # tables excepted
MAX_LINES = {
    "README.md": 200,
    "docs/training.md": 150,
    "docs/accuracy.md": 100,
    "docs/performance.md": 70,
}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_pages_are_short() -> None:
    lengths = {name: len((ROOT / name).read_text().splitlines()) for name in MAX_LINES}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES[name]} == {}


@pytest.mark.parametrize("page", [p for p in PAGES if "bundled" not in p.parts], ids=name_of)
def test_lines_are_short(page: Path) -> None:
    long = [
        (number, line)
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > MAX_COLUMNS and not line.startswith("|")
    ]
    assert long == []


# ---------------------------------------------------------------------------------------------
# Links


FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", flags=re.M | re.S)
INDENTED = re.compile(r"(?:^    \S.*\n)+", flags=re.M)


def prose_of(text: str) -> str:
    """Return a page without its fenced blocks."""
    return FENCED.sub("", text)


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs name them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page.read_text(encoding="utf-8")), flags=re.M)
    words = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"\s+", "-", heading) for heading in words}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    broken = []
    text = re.sub(r"`[^`\n]*`", "code", prose_of(page.read_text(encoding="utf-8")))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        exists = linked.exists() and linked.is_relative_to(ROOT)
        if not exists or (anchor and anchor not in anchors_of(linked)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", TODAY, ids=name_of)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(
        r"`((?:sfm_matchers|pipelines|benchmarks|tests|examples|docs)/[\w./+-]+\.\w+)`",
        page.read_text(encoding="utf-8"),
    )
    assert [name for name in named if not (ROOT / name).exists()] == []


# ---------------------------------------------------------------------------------------------
# Commands


@dataclass(frozen=True)
class Command:
    """A command of a page; `whole` if it is complete, as in a block of code."""

    page: str
    words: tuple[str, ...]  # after the program
    program: str  # a module, or a console script
    whole: bool

    def __str__(self) -> str:
        return " ".join((self.program, *self.words))


def scripts() -> dict[str, str]:
    """Return the console scripts of pyproject.toml: name -> module:function."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = re.search(r"^\[project\.scripts\]\n(.*?)(?=^\[|\Z)", text, flags=re.M | re.S)
    assert section
    return dict(re.findall(r'^"?([\w-]+)"? = "([\w.:]+)"', section.group(1), flags=re.M))


def code_of(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the lines of a page's blocks of code, continued ones joined; then spans of code."""
    for block in FENCED.findall(text) + INDENTED.findall(prose_of(text)):
        for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
            yield line.strip(), True
    for span in re.findall(r"`([^`]+)`", prose_of(text)):
        yield " ".join(span.split()), False


def commands_of(page: Path) -> Iterator[Command]:
    """Yield the commands of this package that a page names."""
    names = "|".join([*scripts(), "sfm-matchers"])
    program = rf"python -m ((?:pipelines|benchmarks)\.\w+)|({names})"
    for line, is_block in code_of(page.read_text(encoding="utf-8")):
        found = re.match(rf"(?:\$ )?(?:{program})(?= |$)(.*)", line)
        if not found:
            continue
        text = re.sub(r"\s#\s.*|\s[|>&;].*", "", found.group(3))
        words = tuple(shlex.split(text))
        if found.group(2) == "sfm-matchers" and not (words and words[0].isidentifier()):
            continue  # the program, without a command
        whole = is_block and "..." not in words
        yield Command(name_of(page), words, found.group(1) or found.group(2), whole)


COMMANDS = list(dict.fromkeys(command for page in TODAY for command in commands_of(page)))


class AboutToParseError(Exception):
    """A parser was asked to parse; what follows would run the command."""

    def __init__(self, parser: argparse.ArgumentParser, words: list[str]) -> None:
        super().__init__()
        self.parser, self.words = parser, words


def start(program: str) -> None:
    """Run a program as `python -m` or its script does."""
    if program in scripts():
        module, function = scripts()[program].split(":")
        getattr(importlib.import_module(module), function)()
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=False)


def parser_of(
    command: Command, patch: pytest.MonkeyPatch
) -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser of a program, and the words that it is about to parse."""

    def stop(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> NoReturn:
        raise AboutToParseError(self, list(sys.argv[1:] if args is None else args))

    with patch.context() as context:
        context.setattr(argparse.ArgumentParser, "parse_args", stop)
        context.setattr(sys, "argv", [command.program, *command.words])
        with pytest.raises(AboutToParseError) as caught:
            start(command.program)
    return caught.value.parser, caught.value.words


def options_of(parser: argparse.ArgumentParser, words: list[str]) -> set[str]:
    """Return the options of a parser, and of the steps below it that `words` name."""
    options = set()
    for action in parser._actions:
        options |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for name in set(action.choices) & set(words):
                options |= options_of(action.choices[name], words)
    return options


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}: {command}"[:90])
def test_commands_parse(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser, words = parser_of(command, monkeypatch)
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given - options_of(parser, words) == set()
    if command.whole:
        with contextlib.suppress(SystemExit):  # of --help; errors are looked at below
            parser.parse_args(words)
        assert "error:" not in capsys.readouterr().err


@pytest.mark.parametrize("page", TODAY, ids=name_of)
def test_python_of_a_page_imports_what_there_is(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    missing = []
    for node in ast.walk(ast.parse("\n".join(blocks))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(OURS):
            module = importlib.import_module(str(node.module))
            missing += [name.name for name in node.names if not hasattr(module, name.name)]
    assert missing == []


@pytest.mark.parametrize("page", TODAY, ids=name_of)
def test_commands_are_those_of_the_installed_package(page: Path) -> None:
    """That each is a module too is said once, on the pages for beginners."""
    text = page.read_text(encoding="utf-8")
    is_told = name_of(page) in ("README.md", "docs/index.md", "CHANGELOG.md")
    assert text.count("python -m pipelines.") == is_told


def test_commands_are_found() -> None:
    programs = {command.program for command in COMMANDS}
    assert {"pipelines.sfm", "sfm-matchers", "hloc"} <= programs
    assert sum(command.whole for command in COMMANDS) > 10


# ---------------------------------------------------------------------------------------------
# Installing


def extras() -> dict[str, str]:
    """Return the extras of pyproject.toml, and what they ask for."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    return dict(re.findall(r"^(\w+) = \[(.*?)\]$", section, flags=re.M | re.S))


def test_every_extra_is_explained() -> None:
    for_users = set(extras()) - {"dev"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r'"\.\[(\w+)\]"', readme)) == for_users
    table = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "index.md").read_text(), flags=re.M))
    assert table == for_users


def test_extras_that_are_named_exist() -> None:
    sources = [*ROOT.glob("sfm_matchers/**/*.py"), *ROOT.glob("pipelines/**/*.py"), *TODAY]
    named = {
        name.strip()
        for path in sources
        for names in re.findall(r"sfm-matchers\[([\w, ]+)\]", path.read_text(encoding="utf-8"))
        for name in names.split(",")
    }
    assert {"heic", "video"} <= named
    assert named - set(extras()) == set()


def test_the_extra_all_leaves_out_what_it_says() -> None:
    (names,) = re.findall(r"sfm-matchers\[([\w,]+)\]", extras()["all"])
    assert set(extras()) - set(names.split(",")) == {"all", "dev", "docs", "mamba", "ray"}


# ---------------------------------------------------------------------------------------------
# The site


def test_site_has_every_page() -> None:
    def pages(entry: Any) -> Iterator[str]:
        for value in entry.values() if isinstance(entry, dict) else entry:
            yield from [value] if isinstance(value, str) else pages(value)

    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    there = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert set(pages(site["nav"])) == there


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="needs the extra docs")
def test_site_builds_without_warnings(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "index.html").is_file()
