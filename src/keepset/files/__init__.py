"""Results on disk: complete files or none, with what they belong to."""
