"""Floor 0: tokenizers and the one byte table."""
