"""Masks in COCO's uncompressed run-length encoding."""

from typing import TypedDict

import numpy as np
from torch import Tensor


class Rle(TypedDict):
    """A mask in COCO's run-length encoding: ``size`` (H, W); ``counts``: alternating runs of 0s and 1s, column by column."""

    size: list[int]
    counts: list[int]


def run_lengths(mask: Tensor) -> Rle:
    """Encode a mask (H, W).

    >>> import torch
    >>> run_lengths(torch.tensor([[0, 1], [0, 1]], dtype=torch.bool))
    {'size': [2, 2], 'counts': [2, 2]}
    """
    flat = mask.cpu().numpy().astype(np.int8).flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], edges, [len(flat)]])
    counts = np.diff(bounds).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if len(flat) and flat[0] else counts}
