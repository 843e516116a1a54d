"""What the machine has, cores and memory; how progress is shown on it."""
