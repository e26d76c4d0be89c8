"""What leaving units out saves in time: one down projection, one FFN block, a whole model."""
