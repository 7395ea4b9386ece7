"""One training: `Run`, all that decides its numbers, and `train`, the one code path that trains it."""
