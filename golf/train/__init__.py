"""Floor 3: the training loop, its state, and what follows it (average, quantize, evaluate)."""
