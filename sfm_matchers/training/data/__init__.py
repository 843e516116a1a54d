"""Pairs to train on, and their truth."""
