"""The reports in a real browser: nothing fails, all is drawn, and nothing is wider than a phone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, look
from localization_page import make_results, write_page
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
