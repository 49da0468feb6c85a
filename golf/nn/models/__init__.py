"""Models composed of slots (exactly one option each) and sites (any number of techniques each)."""
