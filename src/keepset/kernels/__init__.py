"""What does the work: plain references, and faster paths that give the same answer."""
