"""Render photographs of an invented place, with exact poses to check a reconstruction against.

    python examples/render_scene.py /tmp/courtyard --count 12

writes /tmp/courtyard/images/*.jpg and the true COLMAP model /tmp/courtyard/truth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sfm_matchers.synthetic import KINDS, make_scene, write_photos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where images/ and truth/ are written")
    parser.add_argument("--kind", choices=sorted(KINDS), default="courtyard")
    parser.add_argument("--count", type=int, default=12, help="number of photographs")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another place")
    parser.add_argument("--night", action="store_true", help="photographs by night")
    parser.add_argument("--depth", action="store_true", help="also write depth maps")
    parser.add_argument("--texture-size", type=int, default=768, help="more is sharper and slower")
    args = parser.parse_args()

    scene = make_scene(args.seed, kind=args.kind, texture_size=args.texture_size)
    truth = write_photos(
        args.folder, scene, args.count, args.seed, night=args.night, depth=args.depth
    )
    print(f"{truth.num_images()} photographs of a {scene.kind}: {args.folder / 'images'}")
    print(f"true model, {truth.num_points3D()} points: {args.folder / 'truth'}")


if __name__ == "__main__":
    main()
