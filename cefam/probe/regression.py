"""Statistics for the linear regression of the VLM's embedding on the classifier's activations."""

from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLE = 16_384  # maximum number of photographs in the sample, evenly spaced
CONSTANT = 1e-6  # ratio of standard deviation to root mean square below which a channel counts as constant


def sampled(first: int, count: int, total: int) -> Tensor:
    """Boolean mask (count,) of the photographs from ``first`` on that are in the sample."""
    return torch.arange(first, first + count) % -(-total // SAMPLE) == 0


def moments(activations: Tensor, embedding: Tensor, channels: Sequence[int]) -> dict[str, Tensor]:
    """Scale, correlation and covariance of z of all stages (n, C) with unit embeddings (n, D); see :class:`cefam.probe.Probe`."""
    z, e = activations.to(torch.double, copy=True), embedding.double()
    size = torch.linalg.vector_norm(z, dim=0) / len(z) ** 0.5
    z -= z.mean(dim=0)  # in place: 0.5 GB for a ResNet-50
    spread = torch.linalg.vector_norm(z, dim=0) / len(z) ** 0.5
    live = spread > CONSTANT * size
    share = torch.cat([torch.full((count,), count * len(channels) / sum(channels)) for count in channels]).sqrt()
    scale = torch.where(live, spread, torch.ones_like(spread)) * share
    z /= scale
    found = {"scale": scale, "correlation": z.T @ z / len(z), "covariance": z.T @ (e - e.mean(dim=0)) / len(z)}
    return {name: value.float() for name, value in found.items()}
