"""Results on disk: written whole or not at all, read back with what they belong to."""
