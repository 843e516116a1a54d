"""The work of a run."""
