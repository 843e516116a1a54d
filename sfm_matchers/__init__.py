"""MambaGlue, JamMa and Efficient LoFTR for COLMAP and hloc.

Import this package (or OpenCV) before pycolmap: see the first import.
"""

# pycolmap's wheel exports a zlib of its own. Where no zlib is loaded before it, OpenCV and Pillow
# end up with half of each, and crash or hang on the first PNG.
import zlib  # noqa: F401

__version__ = "0.1.0"
