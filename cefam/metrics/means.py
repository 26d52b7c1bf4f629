"""The mean over categories, used by the loggers, the tables and the bootstrap."""

import torch
from torch import Tensor


def category_means(total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Means per category, and their unweighted mean over the categories that have pairs (the paper's "Avg.").

    Args:
        total: sums of values (..., categories), double.
        count: numbers of values (..., categories).

    Returns:
        Means (..., categories), NaN for categories without values, and their mean (...,), NaN if there are no values.

    >>> category_means(torch.tensor([3.0, 0.0, 1.0]), torch.tensor([4, 0, 1]))
    (tensor([0.7500,    nan, 1.0000]), tensor(0.8750))
    """
    means = total / count  # 0 / 0 is NaN
    present = count > 0
    # Added one by one: the summation order of a reduction may depend on the number of rows.
    added = sum(
        torch.where(present, means, 0.0).unbind(-1), start=torch.zeros((), dtype=total.dtype, device=total.device)
    )
    return means, added / present.sum(dim=-1)
