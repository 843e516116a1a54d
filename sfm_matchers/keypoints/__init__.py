"""Detector-free matches of many pairs to one set of keypoints for each photo."""
