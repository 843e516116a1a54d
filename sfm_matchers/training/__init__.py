"""Training of the networks: data made on the fly, losses, one loop."""
