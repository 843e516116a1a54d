"""Where photos were taken, and which to match with which by that."""
