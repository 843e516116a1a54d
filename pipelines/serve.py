"""Serve a map of `sfm-matchers map`: photos are uploaded, poses come back as JSON.

    python -m pipelines.serve MAP
    curl -F image=@new.jpg http://127.0.0.1:8000/localize

http://127.0.0.1:8000/docs describes the API, /health says whether it works. Only this machine is
answered unless --host is given; there is no password and no encryption, which are a proxy's work.
Ctrl-C or SIGTERM ends it once the requests at work are answered.
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.command import is_quiet, run_guarded, say
from pipelines.options import Parser, add_device_option, program
from sfm_matchers.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import uvicorn

    from sfm_matchers.localization.localizer import Localizer

MAX_WAITING = 64  # requests at work or waiting; more are answered 503


def build_parser() -> Parser:
    """Return the command line of this pipeline."""
    parser = Parser(prog=program("serve"), description=__doc__)
    add = parser.add_argument
    add("map", type=Path, metavar="MAP", help="folder of the map")
    add("--host", default="127.0.0.1", help="address to listen at (default: %(default)s)")
    add("--port", type=int, default=8000, help="0: any that is free (default: %(default)s)")
    add("--max_megabytes", type=float, default=32, help="of an upload (default: %(default)s)")
    add("--max_megapixels", type=float, default=50, help="of a photo (default: %(default)s)")
    add("--num_loc", type=int, default=20, help="photos of the map for each query (default: 20)")
    add(
        "--enough_inliers",
        type=int,
        default=100,
        help="match a query with no more photos once it is localized with so many inliers and "
        "several photos agree on its pose; 0: match all of --num_loc (default: %(default)s)",
    )
    add_device_option(add, default="auto")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 after a signal to stop, 2 for bad input."""
    options = Namespace(**build_parser().parse(arguments))
    return run_guarded(lambda: _serve(options))


def _serve(options: Namespace) -> int:
    try:
        importlib.import_module("uvicorn")
        from sfm_matchers.localization.service import create_app
    except ImportError as error:
        raise MissingExtraError(
            f"serve needs FastAPI and uvicorn ({error}): pip install 'sfm-matchers[serve]'"
        ) from error
    from sfm_matchers.localization.localizer import Localizer

    if not (options.max_megabytes > 0 and options.max_megapixels > 0):
        raise InputError("--max_megabytes and --max_megapixels must be above 0")
    if not 0 <= options.port < 1 << 16:
        raise InputError(f"--port {options.port}: a port is 0 to 65535")
    start = time.monotonic()
    localizer = Localizer(
        options.map,
        device=options.device,
        num_loc=options.num_loc,
        enough_inliers=options.enough_inliers or None,
    )
    _say_opened(options.map, localizer, time.monotonic() - start)
    app = create_app(
        localizer,
        max_bytes=int(options.max_megabytes * 1e6),
        max_pixels=int(options.max_megapixels * 1e6),
    )
    try:
        _server(app, options.host, options.port).run()
    except SystemExit as error:  # the address cannot be had; uvicorn has said why
        raise InputError(f"cannot listen at {options.host}:{options.port}") from error
    localizer.close()
    return 0


def _say_opened(path: Path, localizer: Localizer, seconds: float) -> None:
    """Print what the map holds, and what memory it takes."""
    from sfm_matchers.machine.memory import peak_memory

    settings, memory = localizer.settings, peak_memory()
    say(
        f"{path}: {settings.num_photos} photos, {settings.num_points} points, opened in "
        f"{seconds:.1f} s; {memory:.2f} GB of memory, up to "
        f"{memory + localizer.most_cached_bytes / (1 << 30):.2f} GB with the features of "
        "photos that queries need"
    )
    sys.stdout.flush()  # it is waited for


def _server(app: Any, host: str, port: int) -> uvicorn.Server:
    """The server of the application, which a signal ends in order."""
    import uvicorn

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        limit_concurrency=MAX_WAITING,
        log_level="warning" if is_quiet() else "info",
    )

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """As uvicorn's, which would send itself the signal again: to be stopped is no error."""
            numbers = (signal.SIGINT, signal.SIGTERM)
            previous: dict[Any, Any] = {n: signal.signal(n, self.handle_exit) for n in numbers}
            try:
                yield
            finally:
                for number, handler in previous.items():
                    signal.signal(number, handler)

    return Server(config)


if __name__ == "__main__":
    sys.exit(main())
