"""Training: losses, metrics, optimizers, learning-rate schedules and the loop over epochs."""
