"""Means over models trained alike from different seeds, and how sure they are."""

import numpy as np


# 97.5 % points of Student's t for 1, 2, … degrees of freedom
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval by Student's t (NaN for one value)."""
    if len(values) < 2:
        return float(values.mean()), float("nan")
    point = STUDENT[len(values) - 2] if len(values) - 2 < len(STUDENT) else 2.2
    return float(values.mean()), float(point * values.std(ddof=1) / len(values) ** 0.5)
