"""One pass over calibration text: the activation cache, scores of state channels, keep sets."""
