"""MambaGlue, JamMa and Efficient LoFTR for COLMAP and hloc."""

__version__ = "0.1.0"
