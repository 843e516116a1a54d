"""What the networks are trained to say."""
