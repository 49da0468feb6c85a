"""Floor 4: `compose` (words to components), `work` (one job), `sweep` (many)."""
