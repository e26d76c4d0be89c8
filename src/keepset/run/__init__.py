"""What surrounds every job: log, record, provenance, progress, the check of a study."""
