"""Runs, ablations and reports: `python -m experiments.<verb>`."""
