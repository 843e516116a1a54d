"""The service by real requests: many clients, bad uploads, a clean stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pycolmap
import pytest
from PIL import Image
from rendered_room import photograph_room

from sfm_matchers.localization.localizer import Localizer
from sfm_matchers.runs.map_build import build
from sfm_matchers.runs.options import MapOptions

pytestmark = pytest.mark.slow

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")
httpx = pytest.importorskip("httpx", reason="real requests need httpx")

LIMITS = ["--max_megabytes", "0.3", "--max_megapixels", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    photograph_room(folder / "a", 6)
    photograph_room(folder / "b", 2, seed=2)
    build(MapOptions(folder / "a/truth", folder / "a/images", folder / "map", "sift"))
    return folder


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pipelines.serve", str(place / "map"), "--port", str(port)]
    process = subprocess.Popen([*command, *LIMITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{url}/health", timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None, process.stderr.read().decode()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        said, messages = process.communicate(timeout=60)
    if os.name == "posix":
        assert process.returncode == 0, messages.decode()
    assert b"Traceback" not in messages
    assert b"6 photos" in said
    assert b"GB of memory" in said


def upload(address: str, content: bytes, name: str = "new.jpg", **fields: str):
    files = {"image": (name, content, "image/jpeg")}
    return httpx.post(f"{address}/localize", files=files, data=fields, timeout=120)


def test_ten_clients_at_once_get_what_the_localizer_finds(place: Path, address: str) -> None:
    paths = sorted((place / "b/images").glob("*.jpg"))
    with Localizer(place / "map") as localizer:
        # As JSON has it: numbers keep all their digits.
        expected = [json.loads(json.dumps(localizer.localize(p).to_json())) for p in paths]
    assert [found["status"] for found in expected] == ["localized"] * 2
    turns = [index % 2 for index in range(10)]
    with ThreadPoolExecutor(10) as clients:
        answers = list(
            clients.map(lambda i: upload(address, paths[i].read_bytes(), paths[i].name), turns)
        )
    assert [answer.status_code for answer in answers] == [200] * 10
    assert [answer.json() for answer in answers] == [expected[i] for i in turns]


def test_health_and_schema(address: str) -> None:
    health = httpx.get(f"{address}/health").json()
    assert (health["status"], health["matcher"], health["photos"]) == ("ok", "sift", 6)
    schema = httpx.get(f"{address}/openapi.json").json()
    assert {"/localize", "/health"} <= set(schema["paths"])
    assert "covariance" in schema["components"]["schemas"]["Localization"]["properties"]
    assert httpx.get(f"{address}/docs").status_code == 200


def test_bad_uploads_are_refused_and_the_next_is_answered(place: Path, address: str) -> None:
    good = (place / "b/images/0000.jpg").read_bytes()
    wide = BytesIO()
    Image.new("RGB", (1200, 1000)).save(wide, "PNG")
    noise = BytesIO()
    Image.frombytes("RGB", (400, 400), os.urandom(480_000)).save(noise, "PNG")
    for content, status, words in (
        (b"not a photo", 400, "new.jpg is not an image"),
        (b"", 400, "empty"),
        (good[: len(good) // 2], 400, "new.jpg"),
        (wide.getvalue(), 413, "1200 x 1000"),
        (noise.getvalue(), 413, "bytes"),
    ):
        answer = upload(address, content)
        assert answer.status_code == status, answer.text
        assert words in answer.json()["detail"]
        assert "/tmp" not in answer.text
    assert httpx.post(f"{address}/localize").status_code == 422
    # Of unknown length, and beyond the limit.
    endless = (b"x" * 65536 for _ in range(100))
    header = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = httpx.post(f"{address}/localize", content=endless, headers=header)
    assert answer.status_code in (400, 413)
    assert upload(address, good, "../../etc/passwd").json()["name"] == "passwd"


def test_a_given_camera_is_used_or_refused(place: Path, address: str) -> None:
    good = (place / "b/images/0000.jpg").read_bytes()
    image = pycolmap.Reconstruction(place / "b/truth").images[1]
    camera = image.camera
    words = [camera.model.name, camera.width, camera.height, *camera.params.tolist()]
    found = upload(address, good, camera=" ".join(map(str, words))).json()
    assert found["status"] == "localized"
    assert found["camera"]["params"] == camera.params.tolist()
    for text in ("PINHOLE 320", "OURS 320 240 1", "PINHOLE 320 240 a b c d"):
        answer = upload(address, good, camera=text)
        assert answer.status_code == 400
        assert "MODEL width height" in answer.json()["detail"]
