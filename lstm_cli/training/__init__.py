"""Training: steps, losses, optimizers, learning-rate schedules, and the loop over epochs.

Start at `loop`, which keeps the best weights and writes checkpoints. It asks `train_step` for each
step. `optimizers` and `schedules` have the equations and their options.
"""
