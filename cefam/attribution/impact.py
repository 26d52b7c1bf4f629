"""The masking engine: how far a score falls while a concept's most important channels are masked one by one.

One mechanism serves the association of a stage (the score is the concept's, section 3.3) and the contribution of a
concept (the score is the class's, section 3.4); what is run again after masking is the caller's matter.
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
    """Channels of largest SIGNED importance beta * z, descending: (P, C) -> (P, min(K, C)).

    Signed, and without a floor at 0: where fewer than K channels are positive, the least negative follow (published
    program). Equal importances keep the order of the channels.
    """
    if num_channels < 1:
        raise CefamError(f"num_channels must be at least 1, got {num_channels}.")
    return importance.argsort(dim=-1, descending=True, stable=True)[:, : min(num_channels, importance.shape[-1])]


class Masking(NamedTuple):
    """How the channels of P pairs are masked, both (P, C): ``place`` in the order (K: never), ``constant`` they are set to."""

    place: Tensor
    constant: Tensor


def masking(channels: Tensor, replacement: Tensor, num_channels: int) -> Masking:
    """Mask ``channels`` (P, K) in their order, each by its ``replacement`` (P, K), in a stage of ``num_channels`` channels.

    >>> masking(torch.tensor([[2, 0]]), torch.tensor([[5.0, 6.0]]), 3)
    Masking(place=tensor([[1, 2, 0]]), constant=tensor([[6., 0., 5.]]))
    """
    pairs, count = channels.shape
    order = torch.arange(count, device=channels.device).expand(pairs, count)
    place = torch.full((pairs, num_channels), count, device=channels.device).scatter(1, channels, order)
    return Masking(place, replacement.new_zeros(pairs, num_channels).scatter(1, channels, replacement))


def masked(values: Tensor, how: Masking, steps: Tensor) -> Tensor:
    """A stage's output with the first channels replaced by constants.

    Args:
        values: (V, C, ...), whatever follows the channels (positions of a map, prefix tokens).
        how: with a row per row of ``values``.
        steps: how many channels are masked in each row (V,).

    Returns:
        In the shape of ``values``.
    """
    shape = (*values.shape[:2], *(1,) * (values.dim() - 2))
    hidden = (how.place < steps.unsqueeze(1)).view(shape)
    return torch.where(hidden, how.constant.to(values.dtype).view(shape), values)


def impact(log_scores: Tensor) -> Impact:
    """Impact of masking: curve n = (s_0 - s_n) / s_0, value = sum_n curve_n / K (golden rule of the published program).

    Args:
        log_scores: logarithms of the score with n = 0 .. K channels masked (P, K + 1); logarithms, so that a score
            near zero does not become 0 / 0.

    >>> impact(torch.tensor([[1.0, 0.5, 0.25]], dtype=torch.double).log()).value
    tensor([0.6250], dtype=torch.float64)
    """
    curve = -torch.expm1(log_scores.double() - log_scores[:, :1].double())
    return Impact(curve.sum(dim=-1) / (log_scores.shape[-1] - 1), curve)
