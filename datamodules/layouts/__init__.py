"""Data as it lies: what is read of which files, and how."""
