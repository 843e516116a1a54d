"""The main job: a folder of photos to a COLMAP model."""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import h5py
import numpy as np
import pycolmap
import pytest
import torch
from rendered_room import CAMERA, photograph_room

from pipelines.sfm import main
from sfm_matchers.confs import CONF_DIR
from sfm_matchers.errors import InputError
from sfm_matchers.evaluation.models import compare_models
from sfm_matchers.files.hdf5 import list_groups, open_h5
from sfm_matchers.files.notes import read_memory
from sfm_matchers.files.pair_lists import write_pairs
from sfm_matchers.mapping.database import verify_geometry
from sfm_matchers.networks.jamma import JamMa
from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run
from sfm_matchers.synthetic import make_scene, write_photos

pytestmark = pytest.mark.slow

NUM_PHOTOS, NUM_PAIRS = 6, 15


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered photos of one place: images/ and truth/."""
    folder = tmp_path_factory.mktemp("photos")
    return photograph_room(folder, NUM_PHOTOS)


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of a whole run; tests must not change them."""
    outputs = tmp_path_factory.mktemp("finished")
    assert main(["--image_dir", str(photos / "images"), "--outputs", str(outputs)]) == 0
    return outputs


def model_of(outputs: Path) -> pycolmap.Reconstruction:
    return pycolmap.Reconstruction(outputs / "sparse" / "0")


def statistics(outputs: Path) -> tuple[int, int, float, float]:
    model = model_of(outputs)
    return (
        model.num_reg_images(),
        model.num_points3D(),
        round(model.compute_mean_track_length(), 6),
        round(model.compute_mean_reprojection_error(), 6),
    )


def copy_of(photos: Path, target: Path, count: int = 4) -> Path:
    target.mkdir()
    for path in sorted((photos / "images").glob("*.jpg"))[:count]:
        shutil.copy(path, target / path.name)
    return target


def test_model_agrees_with_the_truth(photos: Path, finished: Path) -> None:
    errors = compare_models(model_of(finished), pycolmap.Reconstruction(photos / "truth"))
    assert errors.num_registered == errors.num_images == NUM_PHOTOS
    assert errors.center_errors.mean() < 0.01 * errors.extent


def test_files_have_hloc_layout(finished: Path) -> None:
    with h5py.File(finished / "feats-sift.h5") as file:
        group = file["0000.jpg"]
        count = len(group["keypoints"])
        assert group["keypoints"].dtype == np.float32
        assert group["keypoints"].shape == (count, 2)
        assert group["descriptors"].dtype == np.float16
        assert group["descriptors"].shape == (128, count)
        assert group["image_size"][()].tolist() == [320, 240]
    with h5py.File(finished / "matches-sift-NN-ratio_pairs-exhaustive.h5") as file:
        group = file["0000.jpg"]["0001.jpg"]
        assert group["matches0"].dtype == np.int32
        assert group["matches0"].shape == (count,)
        assert group["matching_scores0"].dtype == np.float16
    pairs = (finished / "pairs-exhaustive.txt").read_text().splitlines()
    assert len(pairs) == NUM_PAIRS
    assert pairs[0] == "0000.jpg 0001.jpg"
    assert {path.suffix for path in (finished / "sparse" / "0").iterdir()} == {".bin"}


def test_database_keypoints_are_half_a_pixel_further(finished: Path) -> None:
    with (
        open_h5(finished / "feats-sift.h5") as file,
        pycolmap.Database.open(finished / "database.db") as database,
    ):
        stored = database.read_keypoints(database.read_image_with_name("0003.jpg").image_id)
        np.testing.assert_allclose(stored[:, :2], file.keypoints("0003.jpg") + 0.5)


def test_second_run_changes_nothing(
    photos: Path, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Not the database: SQLite touches it when it is read.
    watched = [path for path in finished.rglob("*") if path.suffix in (".h5", ".bin")]
    before = {path: path.stat().st_mtime_ns for path in watched}
    noted = read_memory(finished / "steps.json")["seconds"]
    with caplog.at_level(logging.INFO, logger="sfm_matchers"):
        seconds = run(SfmOptions(photos / "images", finished)).summary["seconds"]
    assert {path: path.stat().st_mtime_ns for path in watched} == before
    assert "Nothing to do" in caplog.text
    again = {"uncertainty", "georeference"}  # computed each time
    assert seconds.keys() == noted.keys()
    assert {name: seconds[name] for name in seconds.keys() - again} == {
        name: round(noted[name], 1) for name in noted.keys() - again
    }


def test_quality_is_that_of_the_features(photos: Path, tmp_path: Path) -> None:
    images = copy_of(photos, tmp_path / "images")
    given = ["--images", str(images), "--output", str(tmp_path), "--matcher", "SIFT"]
    assert main([*given, "--max-num-features", "300"]) == 0
    with open_h5(tmp_path / "feats-sift.h5") as file:
        few = len(file.keypoints("0000.jpg"))
    assert main([*given, "--max-image-size", "200", "--no-refine"]) == 0
    with open_h5(tmp_path / "feats-sift.h5") as file:
        assert len(file.keypoints("0000.jpg")) > few
    log = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert log.count("ended with status 0") == 2
    assert "max_image_size=200" in log


def test_longer_tracks_can_be_left_out_and_made_later(
    photos: Path, finished: Path, tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    shutil.copytree(finished, outputs)
    short = run(SfmOptions(photos / "images", outputs, no_longer_tracks=True))
    assert "longer tracks" not in short.summary["seconds"]
    assert statistics(outputs)[2] < statistics(finished)[2]
    run(SfmOptions(photos / "images", outputs))
    assert statistics(outputs) == statistics(finished)


def test_pairs_without_the_share_of_inliers_are_left_out(
    photos: Path, finished: Path, tmp_path: Path
) -> None:
    outputs = tmp_path / "out"
    shutil.copytree(finished, outputs)
    match_path = outputs / "matches-sift-NN-ratio_pairs-exhaustive.h5"
    before = match_path.stat().st_mtime_ns
    conf_path = tmp_path / "sift.yaml"
    conf_path.write_text((CONF_DIR / "sift.yaml").read_text() + "\nmin_inlier_ratio: 1\n")
    result = run(SfmOptions(photos / "images", outputs, str(conf_path)))
    assert not result.models  # of every pair some match is no inlier
    assert match_path.stat().st_mtime_ns == before


def test_changed_photo_is_noticed(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = copy_of(photos, tmp_path / "images")
    outputs = tmp_path / "out"
    run(SfmOptions(images, outputs, "sift"))
    with h5py.File(outputs / "feats-sift.h5") as file:
        before = {name: file[name].attrs["fingerprint"] for name in file}
    shutil.copy(photos / "images" / "0005.jpg", images / "0001.jpg")
    with caplog.at_level(logging.INFO):
        run(SfmOptions(images, outputs, "sift"))
    with h5py.File(outputs / "feats-sift.h5") as file:
        changed = [name for name in file if file[name].attrs["fingerprint"] != before[name]]
    assert changed == ["0001.jpg"]
    assert "3 pairs in matches-sift-NN-ratio_pairs-exhaustive.h5 are matched again" in caplog.text
    assert "database.db: photos, matches or settings have changed" in caplog.text


def test_keypoints_on_masked_pixels_never_arrive(photos: Path, tmp_path: Path) -> None:
    images = copy_of(photos, tmp_path / "images", count=3)
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.full((240, 320), 255, dtype=np.uint8)
    mask[:, :160] = 0
    for index in range(3):
        cv2.imwrite(str(masks / f"000{index}.jpg.png"), mask)
    run(SfmOptions(images, tmp_path / "out", "sift", mask_dir=masks))
    with pycolmap.Database.open(tmp_path / "out" / "database.db") as database:
        columns = [
            database.read_keypoints(image.image_id)[:, 0] for image in database.read_all_images()
        ]
    assert min(values.min() for values in columns) >= 159.5
    mask_path = masks / "0000.jpg.png"
    cv2.imwrite(str(mask_path), mask[:100])
    with pytest.raises(InputError, match=r"0000\.jpg\.png is 320x100"):
        run(SfmOptions(images, tmp_path / "out", "sift", mask_dir=masks))


def test_odd_names_and_unreadable_photos(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = copy_of(photos, tmp_path / "images", count=6)
    (images / "Köln am Rhein").mkdir()
    (images / "0004.jpg").rename(images / "Köln am Rhein" / "photo 1.JPG")
    (images / "empty.jpg").touch()
    (images / "garbage.png").write_bytes(b"no image at all")
    (images / "notes.txt").write_text("not a photo")
    for name in ("a.nef", "clip.mp4"):
        (images / name).touch()
    result = run(SfmOptions(images, tmp_path / "out"))
    assert "empty.jpg" in caplog.text
    assert "garbage.png" in caplog.text
    names = {image.name for image in result.models[0].images.values()}
    assert "Köln am Rhein/photo 1.JPG" in names
    report = result.report.read_text(encoding="utf-8")
    assert "Köln am Rhein" in report
    clip = images / "clip.mp4"
    for text in ("1 photo .nef: convert", f"{clip}: to use it", "empty.jpg is empty"):
        assert text in result.summary["left out"]
        assert text in report
    assert "garbage.png is not an image" in result.summary["left out"]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_photos(
    photos: Path, tmp_path: Path, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    images = copy_of(photos, tmp_path / "images", count)
    assert main(["--image_dir", str(images), "--outputs", str(tmp_path / "out")]) == 2
    assert f"holds {count} photo(s)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image_dir", "nowhere"], "is not a folder of photos"),
        (["--matcher", "sitf"], "did you mean 'sift'?"),
        (["--camera_model", "HOLGA"], "unknown camera model"),
        (["--camera_params", "1,2"], "takes f, cx, cy, k"),
        (["--pairs", "nowhere.txt"], "is not a file of pairs"),
    ],
)
def test_bad_options_are_one_line(
    photos: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["--image_dir", str(photos / "images"), "--outputs", str(tmp_path), *arguments]
    assert main(given) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error


def test_two_places_are_two_groups(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other"
    scene = make_scene(8, kind="courtyard", texture_size=256)
    write_photos(other, scene, 3, 1, camera=CAMERA)
    images = copy_of(photos, tmp_path / "images", count=3)
    for path in (other / "images").glob("*.jpg"):
        shutil.copy(path, images / f"other-{path.name}")
    run(SfmOptions(images, tmp_path / "out", "sift"))
    assert "groups without verified matches between them" in caplog.text


def test_blank_photos_give_no_model_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for index in range(3):
        cv2.imwrite(str(images / f"{index}.png"), np.full((96, 128, 3), 99 + index, np.uint8))
    assert main(["--image_dir", str(images), "--outputs", str(tmp_path / "out")]) == 1
    assert "no two photos have enough verified matches" in caplog.text


@pytest.mark.parametrize("pairs", ["sequential", "retrieval"])
def test_pairs_from_order_and_from_similarity(photos: Path, tmp_path: Path, pairs: str) -> None:
    result = run(SfmOptions(photos / "images", tmp_path, pairs=pairs, num_matched=3))
    assert result.models[0].num_reg_images() == NUM_PHOTOS
    assert len(next(tmp_path.glob("pairs-*.txt")).read_text().splitlines()) < NUM_PAIRS


def test_pairs_from_a_file(photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed = tmp_path / "pairs-mine.txt"
    listed.write_text("0000.jpg 0001.jpg\r\n\r\n0001.jpg 0000.jpg\n0002.jpg ghost.jpg\n")
    images = copy_of(photos, tmp_path / "images", count=3)
    run(SfmOptions(images, tmp_path / "out", "sift", pairs=str(listed)))
    assert "ghost.jpg" in caplog.text
    match_path = tmp_path / "out" / "matches-sift-NN-ratio_pairs-mine.h5"
    assert list_groups(match_path) == ["0000.jpg/0001.jpg"]


@pytest.mark.parametrize("mapper", ["global", "hierarchical"])
def test_other_mappers(photos: Path, finished: Path, tmp_path: Path, mapper: str) -> None:
    outputs = tmp_path / "out"
    shutil.copytree(finished, outputs)
    result = run(SfmOptions(photos / "images", outputs, mapper=mapper))
    assert result.models[0].num_reg_images() >= NUM_PHOTOS - 1


def test_paths_may_be_text(photos: Path, tmp_path: Path) -> None:
    images = copy_of(photos, tmp_path / "images", count=3)
    mask = tmp_path / "mask.png"
    cv2.imwrite(str(mask), np.full((240, 320), 255, np.uint8))
    conf = tmp_path / "mine.yaml"
    shutil.copy(CONF_DIR / "sift.yaml", conf)
    pairs = tmp_path / "pairs-mine.txt"
    write_pairs(pairs, [(f"000{index}.jpg", f"000{index + 1}.jpg") for index in range(2)])
    for kind in (str, Path):
        options = SfmOptions(
            kind(images),
            kind(tmp_path / "out"),
            kind(conf),
            pairs=kind(pairs),
            mask_dir=kind(mask),
            overwrite=True,
        )
        assert run(options).report.is_file()


def test_known_intrinsics_stay(photos: Path, tmp_path: Path) -> None:
    truth = next(iter(pycolmap.Reconstruction(photos / "truth").cameras.values()))
    params = ",".join(map(str, truth.params))
    options = SfmOptions(
        photos / "images", tmp_path, camera_model=truth.model_name, camera_params=params
    )
    for camera in run(options).models[0].cameras.values():
        np.testing.assert_array_equal(camera.params, truth.params)


def test_overwrite_deletes_what_runs_wrote_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    images = copy_of(photos, tmp_path / "images")
    outputs = tmp_path / "out"
    run(SfmOptions(images, outputs, "sift", export="gsplat,ply"))
    left_by_a_kill = outputs / ".steps.json.0123abcd.tmp"
    left_by_a_kill.touch()
    (outputs / "notes.txt").touch()
    before = (outputs / "feats-sift.h5").stat().st_mtime_ns
    run(SfmOptions(images, outputs, overwrite=True))
    assert (outputs / "feats-sift.h5").stat().st_mtime_ns > before
    assert not left_by_a_kill.exists()
    assert not (outputs / "images").exists()
    assert not (outputs / "points3D.ply").exists()
    assert len(list(images.iterdir())) == 4
    assert (outputs / "notes.txt").exists()
    (outputs / "of my own.png").touch()
    for path in images.iterdir():  # then no picture takes the place of an old one
        path.unlink()
    with pytest.raises(InputError, match=r"holds 0 photo"):
        run(SfmOptions(images, outputs, overwrite=True))
    assert [path.name for path in outputs.glob("*.png")] == ["of my own.png"]


def test_exports_come_with_a_run_and_go_with_overwrite(
    photos: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = tmp_path / "out"
    shutil.copytree(finished, outputs)
    before = statistics(outputs)
    given = ["--image_dir", str(photos / "images"), "--outputs", str(outputs)]
    assert main([*given, "--export", "nerfstudio,gsplat,undistorted,ply"]) == 0
    printed = dict(
        re.split("  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines()
    )
    assert printed["verdict"].startswith(f"all {NUM_PHOTOS} photos are in the model")
    assert printed["export, nerfstudio"] == str(outputs / "transforms.json")
    assert printed["export, undistorted"] == str(outputs / "undistorted")
    names = sorted(path.name for path in (outputs / "images").iterdir())
    assert names == sorted(image.name for image in model_of(outputs).images.values())
    assert statistics(outputs) == before
    assert main([*given, "--export", "obj"]) == 2
    assert "expected one of nerfstudio" in capsys.readouterr().err
    (outputs / "points3D.ply").unlink()
    (outputs / "exports.json").unlink()
    assert main([*given, "--export", "gsplat"]) == 2  # before any work
    assert "images is there already" in capsys.readouterr().err


def test_jamma_with_random_weights_runs_to_the_end(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "jamma.ckpt"
    torch.save({"state_dict": JamMa().state_dict()}, weights)
    images = copy_of(photos, tmp_path / "images", count=2)
    for path in images.iterdir():
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (160, 120)))
    conf, text = tmp_path / "jamma.yaml", (CONF_DIR / "jamma.yaml").read_text()
    conf.write_text(text := text.replace("quarter_turns: true", "quarter_turns: false"))
    arguments = ["--image_dir", images, "--outputs", tmp_path / "out", "--matcher", conf]
    status = main([*map(str, arguments), "--weights", str(weights)])
    assert status in (0, 1)
    with open_h5(tmp_path / "out" / "feats-jamma.h5") as features:
        assert features.keypoints("0000.jpg").dtype == np.float32
    with open_h5(tmp_path / "out" / "matches-jamma_pairs-exhaustive.h5") as matches:
        matches.matches("0000.jpg", "0001.jpg")
    assert (tmp_path / "out" / "report.html").is_file()

    raw = tmp_path / "out" / "correspondences-jamma_pairs-exhaustive.h5"
    assert raw.is_file()
    command = [*map(str, arguments), "--weights", str(weights), "--drop_raw_matches"]
    assert main(command) == status
    assert not raw.exists()
    before = (tmp_path / "out" / "matches-jamma_pairs-exhaustive.h5").stat().st_mtime_ns
    assert main(command) == status  # finds all done, without them
    assert not raw.exists()
    assert (tmp_path / "out" / "matches-jamma_pairs-exhaustive.h5").stat().st_mtime_ns == before
    conf.write_text(re.sub(r"min_inlier_ratio: \S+", "min_inlier_ratio: 0.5", text))
    assert main(command) in (0, 1)
    assert (tmp_path / "out" / "matches-jamma_pairs-exhaustive.h5").stat().st_mtime_ns == before
    write_pairs(tmp_path / "fewer.txt", [("0000.jpg", "0001.jpg")])
    assert main([*command, "--pairs", str(tmp_path / "fewer.txt")]) == status
    assert (tmp_path / "out" / "matches-jamma_pairs-fewer.h5").is_file()


def test_killed_runs_end_with_the_same_model(photos: Path, finished: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments; set SFM_MATCHERS_KILLS for more than two."""
    command = [sys.executable, "-m", "pipelines.sfm", "--image_dir", str(photos / "images")]
    root = Path(__file__).resolve().parents[2]
    moments = random.Random(1)
    for attempt in range(int(os.environ.get("SFM_MATCHERS_KILLS", "2"))):
        outputs = tmp_path / str(attempt)
        process = subprocess.Popen(
            [*command, "--outputs", str(outputs)],
            cwd=root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (outputs / "photos.json").exists():
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 4))
        process.kill()
        process.wait()
        run(SfmOptions(photos / "images", outputs))
        assert statistics(outputs) == statistics(finished)


def test_png_files_work_after_the_pipeline_is_imported() -> None:
    """pycolmap's zlib must not get in the way of OpenCV's and Pillow's."""
    code = (
        "import pipelines.sfm, cv2, numpy as np\n"
        "image = np.random.default_rng(0).integers(0, 255, (500, 500, 3), dtype=np.uint8)\n"
        "data = cv2.imencode('.png', image)[1]\n"
        "assert (cv2.imdecode(data, cv2.IMREAD_COLOR) == image).all()\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=120)


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a POSIX signal")
def test_ctrl_c_stops_cleanly_and_the_command_goes_on(photos: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.sfm", "--image_dir", str(photos / "images")]
    command += ["--outputs", str(tmp_path)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # Shells start background jobs, such as a whole test run, with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "photos.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    assert main(command[3:]) == 2  # another run is working here
    process.send_signal(signal.SIGINT)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert message.strip().endswith("stopped; the same command goes on from here")
    assert main(command[3:]) == 0


def test_a_pair_needs_a_share_of_inliers(tmp_path: Path) -> None:
    """True matches of a camera that moves sideways, and twice as many wrong ones."""
    rng = np.random.default_rng(0)
    points = rng.uniform((-2, -1.5, 4), (2, 1.5, 8), (120, 3))
    focal, centre, shift = 500.0, np.array([320.0, 240.0]), np.array([0.8, 0, 0])
    true0, true1 = (
        focal * moved[:, :2] / moved[:, 2:] + centre for moved in (points, points - shift)
    )
    wrong0, wrong1 = rng.uniform((0, 0), (640, 480), (2, 240, 2))
    keypoints = np.concatenate([true0, wrong0]), np.concatenate([true1, wrong1])
    matches = np.repeat(np.arange(360, dtype=np.uint32)[:, None], 2, axis=1)
    path = tmp_path / "database.db"
    with pycolmap.Database.open(path) as database:
        camera = pycolmap.Camera(
            model="SIMPLE_PINHOLE", width=640, height=480, params=[focal, *centre]
        )
        camera.has_prior_focal_length = True
        camera_id = database.write_camera(camera)
        ids = []
        for name, points_of_image in zip(("a.jpg", "b.jpg"), keypoints, strict=True):
            ids.append(database.write_image(pycolmap.Image(name=name, camera_id=camera_id)))
            database.write_keypoints(ids[-1], points_of_image.astype(np.float32))
        database.write_matches(*ids, matches)
    assert verify_geometry(path) == 1
    with pycolmap.Database.open(path) as database:
        assert 110 <= len(database.read_two_view_geometry(*ids).inlier_matches) < 160
        database.clear_two_view_geometries()
    assert verify_geometry(path, min_inlier_ratio=0.5) == 0
