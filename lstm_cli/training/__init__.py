"""Training: steps, losses, optimizers, learning-rate schedules, and the loop over epochs.

Start at `loop`, which keeps the best weights and writes checkpoints. It asks `train_step` for each
step. `schedules` has the learning rates, their keys are in `lstm_cli.config.schema`.
"""
