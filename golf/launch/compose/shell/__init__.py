"""Shell commands as people paste them: read, never run."""
