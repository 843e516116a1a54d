"""Where downloaded weights lie, and how they get there: whole and checked, or not at all.

torch.hub does less of it: it follows any redirect, and takes a web page or half a file for weights
of which no checksum is published.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from http.client import HTTPMessage
from pathlib import Path
from typing import IO

from sfm_matchers.errors import WeightsError, one_line
from sfm_matchers.files.fingerprints import file_sha256
from sfm_matchers.files.notes import copy_of
from sfm_matchers.files.replacing import replacing
from sfm_matchers.machine.progress import progress
from sfm_matchers.weights.registry import BUNDLED_DIR, Checkpoint

logger = logging.getLogger(__name__)

ALLOWED_SCHEMES = ("https",)
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 30


def cache_dir() -> Path:
    """Return the folder of downloaded weights: SFM_MATCHERS_CACHE or ~/.cache/sfm_matchers."""
    configured = os.environ.get("SFM_MATCHERS_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache/sfm_matchers"


def is_offline() -> bool:
    """Tell whether SFM_MATCHERS_OFFLINE forbids downloads."""
    return os.environ.get("SFM_MATCHERS_OFFLINE", "").lower() not in ("", "0", "false", "no")


def checkpoint_path(checkpoint: Checkpoint) -> Path:
    """Return where the file lies, or will lie once it is downloaded."""
    return (BUNDLED_DIR if checkpoint.is_bundled else cache_dir()) / checkpoint.file_name


def fetch(checkpoint: Checkpoint) -> Path:
    """Return the path of a checkpoint's file, downloading it first if it is not there.

    Raises:
        WeightsError: there is no network, downloads are switched off, the file has to be fetched by
            hand, or what lies there or arrives is not the expected file. The message says what to
            download and where to put it.
    """
    path = checkpoint_path(checkpoint)
    if path.is_file():
        _check(path, checkpoint)
        return path
    advice = f"download {checkpoint.url} and save it as {path}"
    if checkpoint.by_hand:
        raise WeightsError(
            f"{checkpoint.name} has no direct link: open {checkpoint.url}, "
            f"download {checkpoint.file_name} and save it as {path}"
        )
    if is_offline():
        raise WeightsError(
            f"{checkpoint.name} is missing and SFM_MATCHERS_OFFLINE is set: {advice}"
        )
    try:
        expected = checkpoint.sha256 or next(iter(_noted(path) or ()), None)
        download(checkpoint.url, path, sha256=expected, size=checkpoint.size)
        if expected is None:
            _remember(path)
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(
            f"cannot fetch {checkpoint.name} ({_reason(error)}): {advice}"
        ) from error
    return path


def _check(path: Path, checkpoint: Checkpoint) -> None:
    """Compare a file that is there with what is published of it, or with what it was at first.

    Raises:
        WeightsError: it is another one.
    """
    if checkpoint.is_bundled:
        return
    if checkpoint.sha256:
        if file_sha256(path) != checkpoint.sha256:
            raise WeightsError(f"{path} is damaged (wrong sha256): delete it and run again")
        return
    digest, noted = file_sha256(path), _noted(path)
    if noted is None:
        _remember(path)
    elif digest not in noted:
        raise WeightsError(
            f"{path} is not the file that was there at first (its sha256 is not the one in "
            f"{_memory_path(path).name}): delete it and run again; delete both to accept another"
        )
    elif noted != [digest, digest]:
        if _read_digest(_memory_path(path)) != digest:
            logger.warning("%s is damaged: it is made again from its copy", _memory_path(path))
        _write_memory(path, digest)


def _memory_path(path: Path) -> Path:
    """Where the sha256 of a file lies of which none is published, as ``sha256sum`` writes it."""
    return path.with_name(f"{path.name}.sha256")


def _noted(path: Path) -> list[str] | None:
    """What the note and its copy say of the sha256 that a file had at first; None without a note.

    Raises:
        WeightsError: both are damaged.
    """
    memory_path = _memory_path(path)
    if not memory_path.exists():
        return None
    noted = [_read_digest(memory_path), _read_digest(copy_of(memory_path))]
    if not any(noted):
        raise WeightsError(f"{memory_path} is damaged: delete it, and {path.name} if in doubt")
    return [digest for digest in noted if digest]


def _read_digest(path: Path) -> str:
    """The sha256 in a note; "" if it is missing or damaged."""
    try:
        digest = path.read_text(encoding="ascii").split()[0].lower()
    except (OSError, ValueError, IndexError):
        return ""
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else ""


def _remember(path: Path) -> None:
    """Note the sha256 of a file of which none is published; no other is accepted from then on."""
    digest = file_sha256(path)
    logger.warning(
        "%s: no checksum of these weights is published; this file (sha256 %s) is accepted, another "
        "one later is not",
        path,
        digest,
    )
    _write_memory(path, digest)


def _write_memory(path: Path, digest: str) -> None:
    """Write the note of a file's sha256, and its copy."""
    memory_path = _memory_path(path)
    try:
        for one in (memory_path, copy_of(memory_path)):
            with replacing(one) as temporary:
                temporary.write_text(f"{digest}  {path.name}\n", encoding="ascii")
    except OSError as error:
        logger.warning("%s cannot be written: %s", memory_path, error.strerror)


def download(url: str, path: Path, *, sha256: str | None = None, size: int | None = None) -> None:
    """Download a file; `path` appears complete and verified, or does not change.

    Args:
        url: https only, also after redirects.
        path: the destination; its folder is made.
        sha256: the expected digest, 64 hexadecimal digits; None accepts any.
        size: the expected length in bytes; None accepts what the server announces.

    Raises:
        WeightsError: the content is not what was expected, or the URL is not https.
        OSError, http.client.HTTPException: the network or the disk failed.
    """
    _require_https(url)
    with replacing(path) as temporary, temporary.open("wb") as file:
        opener = urllib.request.build_opener(_HttpsRedirects)
        with opener.open(url, timeout=TIMEOUT_SECONDS) as response:
            digest = _copy(response, file, path.name, url, size)
        if sha256 is not None and digest != sha256:
            raise WeightsError(f"{url} has sha256 {digest}, expected {sha256}: not kept")
    logger.info("downloaded %s (sha256 %s%s)", path, digest, ", verified" if sha256 else "")


def _copy(
    response: http.client.HTTPResponse, file: IO[bytes], label: str, url: str, size: int | None
) -> str:
    """Copy a response to a file under a progress bar; return the SHA-256 of what was copied."""
    if response.headers.get_content_type() == "text/html":
        raise WeightsError(f"{url} answers with a web page instead of a file")
    announced = response.headers.get("Content-Length")
    expected = size if size is not None else int(announced) if announced else None
    digest = hashlib.sha256()
    received = 0
    with progress(total=expected, title=label, unit="B", stays=False) as bar:
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if expected is not None and received != expected:
        raise WeightsError(f"{url} gave {received} bytes, expected {expected}: not kept")
    return digest.hexdigest()


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to anything else."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        _require_https(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_https(url: str) -> None:
    if urllib.parse.urlsplit(url).scheme not in ALLOWED_SCHEMES:
        raise WeightsError(f"{url} is not an https address: refused")


def _reason(error: Exception) -> str:
    """Say in one line why a download failed."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return one_line(error.reason if isinstance(error, urllib.error.URLError) else error)
