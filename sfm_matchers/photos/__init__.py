"""Photographs: which files are some, decoding, masks, cameras."""
