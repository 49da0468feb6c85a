"""Floor 1: layers, attention backends, kernels, models and techniques."""
