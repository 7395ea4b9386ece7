"""Which classes are taken for which, for tables and figures."""

import numpy as np
from numpy.typing import NDArray

from experiments.evidence.experiment import Experiment

PAIRS = 8  # that a report shows
LEAST = 0.0005  # of all wrong pixels: what is printed as 0.0 is no frequent confusion


def confusion_shares(experiment: Experiment) -> dict[str, NDArray[np.float64]]:
    """Of each variant's wrong pixels the share of each pair of classes (C, C), rows the truth, mean over seeds.

    Variants without a wrong pixel are left out.
    """
    by_variant = {}
    for name, cells in experiment.cells.items():
        wrong = [cell.confusion * ~np.eye(len(cell.class_names), dtype=bool) for cell in cells.values()]
        shares = [counts / counts.sum() for counts in wrong if counts.any()]
        if shares:
            by_variant[name] = np.mean(shares, axis=0)
    return by_variant


def frequent_confusions(shares: dict[str, NDArray[np.float64]]) -> dict[tuple[int, int], float]:
    """The most frequent pairs (true class, predicted class), with the mean of the variants' shares, largest first."""
    if not shares:
        return {}
    mean = np.mean(list(shares.values()), axis=0)
    order = np.argsort(-mean, axis=None, kind="stable")[:PAIRS]  # ties in the order of the classes
    pairs = [(int(place) // len(mean), int(place) % len(mean)) for place in order]
    return {pair: float(mean[pair]) for pair in pairs if mean[pair] >= LEAST}
