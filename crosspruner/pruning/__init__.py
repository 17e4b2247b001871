"""The procedures: which layers, how much of each, and pruning during or after training."""
