"""Floor 4: composing configs, building components from them, starting workers."""
