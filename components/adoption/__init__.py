"""Take a network that is there as a teacher: a training run, public weights or a registered model."""
