"""A folder of photos to a COLMAP model, from Python.

python examples/photos_to_model.py PHOTOS OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sfm_matchers.runs.options import SfmOptions
from sfm_matchers.runs.reconstruct import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("outputs", type=Path)
    args = parser.parse_args()

    result = run(SfmOptions(image_dir=args.photos, outputs=args.outputs, matcher="sift"))
    if not result.models:
        raise SystemExit(f"no model; {result.report} says why")
    model = result.models[0]
    for image in model.images.values():
        print(image.name, image.cam_from_world())
    print(f"{model.num_points3D()} points; look at {result.report}")


if __name__ == "__main__":
    main()
