"""Training runs in folders, and `Trainer`: begin at `training_run`."""
