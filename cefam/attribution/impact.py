"""Masking: relative decrease of a score while a concept's most important channels are masked one by one.

Used for the association of a stage (with the concept's score, section 3.3) and for the contribution of a concept (with
the class's score, section 3.4); the caller reruns the network after masking.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cefam.errors import CefamError


class Impact(NamedTuple):
    """``value`` (P,): area under ``curve``; ``curve`` (P, K + 1): relative decrease after n masked channels. Double."""

    value: Tensor
    curve: Tensor


def leading_channels(importance: Tensor, num_channels: int) -> Tensor:
    """Channels with the largest SIGNED importance beta * z, descending: (P, C) -> (P, min(K, C)).

    Importances are not clipped at 0: if fewer than K are positive, the least negative follow (published program). Ties
    keep the order of the channels.
    """
    if num_channels < 1:
        raise CefamError(f"num_channels must be at least 1, got {num_channels}.")
    return importance.argsort(dim=-1, descending=True, stable=True)[:, : min(num_channels, importance.shape[-1])]


class Masking(NamedTuple):
    """Masking of P pairs' channels, both (P, C): ``place`` in the masking order (K: never masked), ``constant``: new value."""

    place: Tensor
    constant: Tensor


def masking(channels: Tensor, replacement: Tensor, num_channels: int) -> Masking:
    """Mask ``channels`` (P, K) of a stage with ``num_channels`` channels in order, replacing each by ``replacement`` (P, K).

    >>> masking(torch.tensor([[2, 0]]), torch.tensor([[5.0, 6.0]]), 3)
    Masking(place=tensor([[1, 2, 0]]), constant=tensor([[6., 0., 5.]]))
    """
    pairs, count = channels.shape
    order = torch.arange(count, device=channels.device).expand(pairs, count)
    place = torch.full((pairs, num_channels), count, device=channels.device).scatter(1, channels, order)
    return Masking(place, replacement.new_zeros(pairs, num_channels).scatter(1, channels, replacement))


def masked(values: Tensor, how: Masking, steps: Tensor) -> Tensor:
    """``values`` (V, C, ...) with the first ``steps[v]`` channels of row v replaced by constants."""
    shape = (*values.shape[:2], *(1,) * (values.dim() - 2))
    hidden = (how.place < steps.unsqueeze(1)).view(shape)
    return torch.where(hidden, how.constant.to(values.dtype).view(shape), values)


def impact(log_scores: Tensor) -> Impact:
    """Impact of masking: curve n = (s_0 - s_n) / s_0, value = sum_n curve_n / K (as in the published program).

    Args:
        log_scores: logarithm of the score with n = 0 .. K channels masked (P, K + 1); logarithms avoid 0 / 0 for scores
            near zero.

    >>> impact(torch.tensor([[1.0, 0.5, 0.25]], dtype=torch.double).log()).value
    tensor([0.6250], dtype=torch.float64)
    """
    curve = -torch.expm1(log_scores.double() - log_scores[:, :1].double())
    return Impact(curve.sum(dim=-1) / (log_scores.shape[-1] - 1), curve)
