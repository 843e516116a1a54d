"""The reports in a real browser: nothing fails, all is drawn, and nothing is wider than a phone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, look
from localization_page import make_results, write_page
from many_photos import make_many_photos
from report_page import NUM_IMAGES, Scene, make_scene

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium"), pytest.mark.slow]

# How many levels of red a canvas shows; 1 and less is an empty one.
INK = """const ink = id => {
  const { width, height } = byId(id), levels = new Set();
  const pixels = byId(id).getContext("2d").getImageData(0, 0, width, height).data;
  for (let at = 0; at < pixels.length; at += 4) if (pixels[at + 3]) levels.add(pixels[at]);
  return levels.size;
};"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = make_scene(tmp_path)
    made.summary = {"verdict": "All is well.", "verdict_level": "good", "seconds": {"all": 1.5}}
    return made


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (375, False)])
def test_the_report_is_drawn_and_fits(scene, width, dark):
    script = f"(() => {{ {INK} return [ink('scene'), ink('graph'), {OVERFLOW}]; }})()"
    scene_levels, graph_levels, overflow = look(scene.write(), script, width, dark=dark)
    assert scene_levels > 5
    assert graph_levels > 2
    assert overflow <= 0


def test_a_click_on_a_camera_lists_its_matches_and_shows_any_pair(scene):
    click = """(() => {
      const canvas = byId("scene"), box = canvas.getBoundingClientRect();
      let at = null;  // where a camera is: the pointer says so
      for (let y = 4; y < box.height && !at; y += 6) for (let x = 4; x < box.width && !at; x += 6) {
        const init = { clientX: box.left + x, clientY: box.top + y, bubbles: true };
        canvas.dispatchEvent(new PointerEvent("pointermove", init));
        if (canvas.classList.contains("over")) at = init;
      }
      canvas.setPointerCapture = () => {};
      canvas.dispatchEvent(new PointerEvent("pointerdown", { pointerId: 1, button: 0, ...at }));
      canvas.dispatchEvent(new PointerEvent("pointerup", { pointerId: 1, button: 0, ...at }));
      const cards = document.querySelectorAll("#picked .card");
      const name = byId("picked").querySelector("h3").textContent;
      const pictures = [...cards].filter(card => card.querySelector("img")).length;
      cards[0].click();
      return [name, cards.length, pictures, byId("pair").open, byId("pair-names").textContent];
    })()"""
    name, cards, pictures, is_open, names = look(scene.write(), click)
    assert name in scene.names
    assert cards == pictures == NUM_IMAGES - 1
    assert is_open
    assert names.startswith(f"{name} and ")


def test_points_can_be_saved_in_the_frame_of_the_model(scene):
    numbers = look(scene.write(), "Array.from(plyBytes())")
    header, _, body = bytes(numbers).partition(b"end_header\n")
    assert f"element vertex {scene.model.num_points3D()}\n".encode() in header
    vertices = np.frombuffer(body, [("xyz", "<f8", 3), ("rgb", "u1", 3)])
    true = np.array([scene.model.points3D[i].xyz for i in sorted(scene.model.points3D)])
    assert vertices["xyz"] == pytest.approx(true, abs=1e-4 * np.abs(true).max())


def test_points_change_their_colours(scene):
    script = f"""(() => {{ {INK}
      return ["photo", "error", "track"].map(mode => {{
        byId("coloring").value = mode;
        byId("coloring").onchange();
        viewer.draw();
        return [ink("scene") > 1, byId("point-legend").hidden];
      }});
    }})()"""
    assert look(scene.write(), script) == [[True, True], [True, False], [True, False]]


def test_the_matrix_of_many_photos_names_some(tmp_path):
    script = """(() => {
      const canvas = byId("graph"), context = canvas.getContext("2d");
      const inked = (x, y, width, height) =>
        context.getImageData(x, y, width, height).data.some(value => value);
      const before = inked(0, 20, 150, canvas.height - 20);
      const above = inked(160, 0, canvas.width - 160, 20);
      const point = (x, y) => canvas.dispatchEvent(new PointerEvent("pointermove",
        { clientX: canvas.getBoundingClientRect().left + x,
          clientY: canvas.getBoundingClientRect().top + y }));
      point(161, canvas.clientHeight - 1);
      return [before, above, byId("tip").textContent];
    })()"""
    scene = make_many_photos(tmp_path, 60)
    before, above, tip = look(scene.write(), script)
    assert before
    assert above
    assert scene.names[0] in tip
    assert scene.names[-1] in tip


def test_long_names_leave_the_reasons_of_missing_photos_in_sight(scene):
    missing = max(scene.model.reg_image_ids())
    scene.model.deregister_frame(scene.model.images[missing].frame_id)
    path = scene.write()
    text = path.read_text(encoding="utf-8")
    name = scene.model.images[missing].name
    path.write_text(text.replace(f"<td>{name}</td><td>", f"<td>{'long_name' * 12}</td><td>"))
    script = """(() => {
      const box = document.querySelector(".reasons").parentElement;
      const last = document.querySelector(".reasons td:last-child").getBoundingClientRect();
      return [box.scrollWidth - box.clientWidth, last.width / box.clientWidth];
    })()"""
    overflow, share = look(path, script, 375)
    assert overflow <= 0
    assert share >= 0.5


@pytest.mark.parametrize("width", [1280, 375])
def test_the_report_of_a_localization(scene, width):
    path = write_page(scene.root, scene.model, make_results(scene.model))
    script = f"""(() => {{ {INK}
      showPicked(1);
      return [ink("scene"), byId("picked").textContent, {OVERFLOW}];
    }})()"""
    levels, text, overflow = look(path, script, width)
    assert levels > 5
    assert "localized; 0 inliers" in text
    assert overflow <= 0
