"""Penalised logistic regression, for the judges of sound that are set on recordings."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def logistic(measured: Floats, is_one: NDArray[np.bool_], weigh: Floats, keep: float) -> Floats:
    """Weights of each column, and the bias last.

    Args:
        measured: [N, T], standardised.
        is_one: [N]
        weigh: [N] What each row counts for.
        keep: Penalty on the square of a weight; the bias has next to none.
    """
    rows = np.c_[measured, np.ones(len(measured))]
    penalty = keep * np.r_[np.ones(rows.shape[1] - 1), 1e-3]
    found: Floats = np.zeros(rows.shape[1])
    for _ in range(30):  # Newton's method; it has converged long before.
        share = 1 / (1 + np.exp(-rows @ found))
        slope = rows.T @ (weigh * (share - is_one)) + penalty * found
        curve = (rows * (weigh * share * (1 - share))[:, None]).T @ rows + np.diag(penalty)
        found -= np.linalg.solve(curve, slope)
    return found
