"""Floor 3: the run folder and its record, loggers, the progress line, and the store that reads runs back."""
