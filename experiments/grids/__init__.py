"""Ablations: what a study declares, whether it is fair, what it costs, and the cells that train it."""
