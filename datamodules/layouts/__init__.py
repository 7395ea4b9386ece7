"""Label maps from annotations that are no masks."""
