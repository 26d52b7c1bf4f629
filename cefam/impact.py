"""The masking engine: how far a score falls while a concept's most important channels are masked one by one.

One mechanism serves the association of a stage (the score is the concept's, section 3.3) and the contribution of a
concept (the score is the class's, section 3.4); what is run again after masking is the caller's matter.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Impact(NamedTuple):
    """``value`` (P,): area under ``curve``; ``curve`` (P, K + 1): relative decrease after n masked channels. Double."""

    value: Tensor
    curve: Tensor


def masked_count(num_channels: int, channel_share: float, channels: int) -> int:
    """K of a stage: at most ``num_channels``, and at most this share of the stage's channels, but one at least.

    >>> [masked_count(20, 1 / 8, channels) for channels in (4, 64, 2048)]
    [1, 8, 20]
    """
    return min(num_channels, max(1, int(channel_share * channels)))


def leading_channels(importance: Tensor, num_channels: int) -> Tensor:
    """Channels of largest SIGNED importance beta * z, descending: (P, C) -> (P, min(K, C)).

    Signed, and without a floor at 0: where fewer than K channels are positive, the least negative follow (published
    program). Equal importances keep the order of the channels.
    """
    if num_channels < 1:
        raise ValueError(f"num_channels must be at least 1, got {num_channels}.")
    return importance.argsort(dim=-1, descending=True, stable=True)[:, : min(num_channels, importance.shape[-1])]


def masked_variants(values: Tensor, channels: Tensor, replacement: Tensor) -> Tensor:
    """Copies of a stage's output with the first n channels replaced by constants, n = 0 .. K.

    Args:
        values: (P, C, ...), whatever follows the channels (positions of a map, prefix tokens).
        channels: channels in the order of masking (P, K).
        replacement: the constant each of them is set to (P, K).

    Returns:
        (P, K + 1, C, ...)
    """
    pairs, count = channels.shape
    steps = torch.arange(count + 1, device=values.device)
    rank = torch.full(values.shape[:2], count, device=values.device)
    rank.scatter_(1, channels, steps[:-1].expand(pairs, count))  # when a channel is masked; K: never
    constant = values.new_zeros(values.shape[:2]).scatter_(1, channels, replacement.to(values.dtype))
    masked = rank.unsqueeze(1) < steps.view(1, -1, 1)  # (P, K + 1, C)
    trailing = (1,) * (values.dim() - 2)
    return torch.where(
        masked.view(*masked.shape, *trailing),
        constant.view(pairs, 1, -1, *trailing),
        values.unsqueeze(1),
    )


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
