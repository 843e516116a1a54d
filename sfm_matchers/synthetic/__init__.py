"""Rendered photographs of invented places, with exact poses, intrinsics and depth.

A scene is a set of textured quads; every texture is drawn by a procedure from its own seed, so
nothing repeats. The pictures serve as a demonstration, as test material, and as training data.

Frames and units
    World: metres, x east, y north, z up. Cameras: COLMAP axes, x right, y down, z forward.
    Poses are `cam_from_world`, float64 (3, 4). Pixel (0, 0) is the centre of the top-left pixel;
    only `Camera.to_colmap` and the COLMAP model speak COLMAP's convention, (0.5, 0.5) there.
    Depth is z-depth in metres at the centre of the pixel, 0 where there is no surface.

The same seed gives the same scene and pictures with the same versions of numpy and OpenCV.

    >>> scene = make_scene(seed=1, kind="street", texture_size=128)
    >>> camera = Camera.from_field_of_view(160, 120)
    >>> pose = camera_path(scene, count=8)[0]
    >>> photo = render(scene, camera, pose)
    >>> photo.image.shape, photo.depth.shape
    ((120, 160, 3), (120, 160))

Read in this order: `cameras`, `scenes`, `materials` (what surfaces look like), `places` (what
stands where), `rendering`, `photos` (poses, files, the true COLMAP model).
"""

from sfm_matchers.synthetic.cameras import Camera, look_at, project, unproject
from sfm_matchers.synthetic.photos import camera_path, true_model, write_photos
from sfm_matchers.synthetic.places import KINDS, make_scene
from sfm_matchers.synthetic.rendering import Appearance, Rendering, random_appearance, render
from sfm_matchers.synthetic.scenes import Lamp, Quad, Scene

__all__ = [
    "KINDS",
    "Appearance",
    "Camera",
    "Lamp",
    "Quad",
    "Rendering",
    "Scene",
    "camera_path",
    "look_at",
    "make_scene",
    "project",
    "random_appearance",
    "render",
    "true_model",
    "unproject",
    "write_photos",
]
