"""Floor 2: how weights learn: matrix rules, the optimizer, schedules, averaging, and the budget they are scaled to."""
