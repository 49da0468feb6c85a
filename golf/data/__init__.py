"""Floor 0: text sources, shards in the field's binary format, and the training loader."""
