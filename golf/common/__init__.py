"""Floor 0: ranks, clock, seeding, errors, files, log."""
