"""A stand-in for hloc where it is not installed: just the rules that a plugin must keep."""
