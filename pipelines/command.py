"""How every command begins and ends: streams, log, signals, exit codes. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from sfm_matchers.errors import (
    OutputError,
    PhotoChangedError,
    SfmMatchersError,
    one_line,
    printable,
)
from sfm_matchers.files.space import GOES_ON as KEPT
from sfm_matchers.files.space import is_of_full_disk
from sfm_matchers.runs.run_log import RunLog

logger = logging.getLogger("sfm_matchers.pipelines")

BAD_INPUT = 2
PIPE_CLOSED = 128 + 13  # as a shell says of a command that SIGPIPE ended

GOES_ON = "stopped; the same command goes on from here"

MAX_BEGINNINGS = 3  # of a run whose photos change while it works


class _Stopped(KeyboardInterrupt):
    """A signal to stop; whatever ends by Ctrl-C ends by it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


def prepare_process() -> None:
    """Make this process a command: streams that can be used, and signals that end it silently."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until `run_guarded`, see there
    _speak_utf8()
    _open_streams()


def set_up_log(*, quiet: bool = False, verbose: bool = False, times: bool = False) -> None:
    """Have the log of this package, and of no other, written to stderr.

    Args:
        quiet: nothing but warnings.
        verbose: all there is.
        times: each line begins with the time.
    """
    log = logging.getLogger("sfm_matchers")
    handler = next((one for one in log.handlers if isinstance(one, _Stderr)), None)
    if handler is None:
        handler = _Stderr()
        log.addHandler(handler)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s" if times else "%(message)s"))
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


def say(text: str) -> None:
    """Print what came out of a command whose product is files; with ``--quiet`` they must do."""
    if not is_quiet():
        print(text)


def is_quiet() -> bool:
    """Return whether nothing but warnings is to be said."""
    return not logging.getLogger("sfm_matchers").isEnabledFor(logging.INFO)


class _Stderr(logging.StreamHandler):
    """Writes to what is stderr at the time."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        pass


def _quiet_colmap() -> None:
    """Leave out COLMAP's log lines below warnings, except where all is asked for."""
    pycolmap = sys.modules.get("pycolmap")
    if pycolmap is not None and not logging.getLogger("sfm_matchers").isEnabledFor(logging.DEBUG):
        level = pycolmap.logging
        level.minloglevel = max(level.minloglevel, int(level.WARNING))


def _load_pycolmap() -> None:
    """Load it before handlers are set: it sets one of SIGTERM, which prints pages and is undone."""
    if "pycolmap" in sys.modules:
        return
    mask = getattr(signal, "pthread_sigmask", None)
    if mask is not None:  # until its handler is gone
        mask(signal.SIG_BLOCK, [signal.SIGTERM])
    with contextlib.suppress(ImportError):
        importlib.import_module("pycolmap")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if mask is not None:
        mask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _speak_utf8() -> None:
    """Begin again in UTF-8 where the locale knows ASCII only, which names of files go beyond."""
    if sys.getfilesystemencoding() == "ascii" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _open_streams() -> None:
    """Put /dev/null in the place of standard streams that are closed.

    Otherwise the next file that is opened gets their number, and messages of libraries written in C
    end up in it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if not isinstance(sys.stderr, _Forgiving):
        sys.stderr = _Forgiving(sys.stderr)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    if not isinstance(sys.stdout, _Answering):
        sys.stdout = _Answering(sys.stdout)


class _Stream:
    """A stream around another one; those that follow say what is done where it cannot be written.

    What else it can do is that of the other one.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._failing():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._failing():
            self._stream.flush()

    def _failing(self) -> contextlib.AbstractContextManager[None]:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Forgiving(_Stream):
    """For messages: one that cannot be written is no reason to stop."""

    def _failing(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.suppress(OSError)


class _Answering(_Stream):
    """For what was asked for: where it cannot be written, files that are written are not blamed."""

    def _failing(self) -> contextlib.AbstractContextManager[None]:
        return _blaming_stdout()


@contextlib.contextmanager
def _blaming_stdout() -> Iterator[None]:
    try:
        yield
    except (BrokenPipeError, OutputError):
        raise
    except OSError as error:
        _drop_output()
        raise OutputError(f"the output cannot be written: {error.strerror}") from error


def run_command(
    outputs: Path,
    job: Callable[[], int],
    shard: str | None = None,
    *,
    name: str = "",
    options: Any = None,
) -> int:
    """Run a command line that writes to `outputs`, alone there.

    Args:
        outputs: the folder.
        job: the work. It is begun again, and resumes, where photos change in the meantime.
        shard: which part of the matching this run does, beside other runs.
        name: of the command, for the log in the folder.
        options: the dataclass of its options, for the log.

    Returns:
        See `run_guarded`.
    """
    # On large photos and damaged EXIF; what cannot be used is said by `open_photo`.
    warnings.filterwarnings("ignore", module="PIL")

    def alone() -> int:
        from sfm_matchers.runs.workspace import Workspace

        workspace = Workspace(outputs)
        with (
            workspace.alone(shard),
            RunLog(workspace.log, name, options) as log,
        ):
            for _ in range(MAX_BEGINNINGS - 1):
                try:
                    return log.ended(job())
                except PhotoChangedError as error:
                    logger.warning("%s. Beginning again with the photos as they are now", error)
            return log.ended(job())

    def within_the_disk() -> int:
        temporary = Path(tempfile.gettempdir())
        try:
            return alone()
        except SfmMatchersError:
            raise
        except Exception as error:  # libraries fail in any way on a full disk
            if not is_of_full_disk(error, outputs, temporary):
                raise
            raise OutputError(
                f"no space is left for {outputs} or for temporary files in {temporary} "
                f"({one_line(error)}). {KEPT}"
            ) from error

    return run_guarded(within_the_disk)


def run_guarded(job: Callable[[], int]) -> int:
    """Run a command line.

    Returns:
        What `job` returns; 2 after bad input, or where a file cannot be read or written, said in
        one line; 130 after Ctrl-C, 143 after SIGTERM; 141 if nobody reads the output any more.
    """
    try:
        with _stopped_by_signals():
            _quiet_colmap()
            status = job()
            return answer("", status)
    except SfmMatchersError as error:
        return _fail(str(error))
    except _Stopped as stopped:
        print(GOES_ON, file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print(GOES_ON, file=sys.stderr)
        return 128 + signal.SIGINT
    except MemoryError:
        return _fail("the memory is not enough: give fewer or smaller photos, or fewer --workers")
    except BrokenPipeError:
        _drop_output()
        return PIPE_CLOSED
    except OSError as error:
        if error.errno is None:  # of a library, whose message says little
            raise
        where = error.filename or "the output cannot be written"
        return _fail(f"{where}: {error.strerror}")


def _fail(reason: str) -> int:
    print(f"error: {printable(reason)}", file=sys.stderr)
    answer("")
    return BAD_INPUT


def answer(text: str, status: int = 0) -> int:
    """Print a text, and all that was printed before; return the exit status.

    A summary that nobody gets is an error.
    """
    try:
        with _blaming_stdout():
            print(text, end="", flush=True)
    except BrokenPipeError:
        _drop_output()
        return PIPE_CLOSED
    except OutputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return status


def _drop_output() -> None:
    """What is left to print goes nowhere: Python would try again when it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the block in order, and a second one at once."""
    _load_pycolmap()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as of jobs in the background
        numbers.append(signal.SIGINT)
    previous = {number: signal.signal(number, _stop) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        raise  # what follows is the end of the process: the handlers stay
    except BaseException:
        _restore(previous)
        raise
    _restore(previous)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        # None: of a handler that Python does not know, pycolmap's
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _stop(number: int, frame: FrameType | None) -> None:
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, _exit_at_once)
    raise _Stopped(number)


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"stopped\n")
    os._exit(128 + number)
