"""Trained networks as files that run without this repository: written, compared with ours, described, quantised."""
