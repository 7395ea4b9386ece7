"""Loggers beside metrics.csv: TensorBoard and Weights & Biases, and the upload of what was logged offline."""
