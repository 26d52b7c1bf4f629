"""Concept directions in the space of pooled activations z, shared by all images: translator gradients, and regression."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.encoding import Networks, single_precision
from cefam.attribution.scores import similarity_gradient
from cefam.errors import CefamError
from cefam.probe.stored import Probe

LARGEST = 8.0  # factor of a stage


@torch.no_grad()
def concept_directions(networks: Networks, at: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the translator's similarity S with respect to z, at z (C_l,), for all concepts: (T, C_l) per stage."""
    device = networks.device
    with single_precision(device):
        embedding, pull_back = networks.translator.linearize([value.to(device).unsqueeze(0) for value in at])
        text = networks.text(device)
        gradient = similarity_gradient(embedding.expand(len(text), -1), text, networks.concepts.logit_scale)
        return pull_back(gradient, torch.zeros(len(text), dtype=torch.long, device=device))


@torch.no_grad()
def regressed_directions(networks: Networks, probe: Probe) -> list[Tensor]:
    """Regression of the VLM's own similarity on z over the probe, for all concepts, one (T, C_l) per stage.

    Ridge regression (Hoerl and Kennard, 1970) with a prior mean. Let x be the probe's centered z in units of its ``scale``, and
    s the cosine of the VLM's image embedding with the text. v minimizes mean (s - v.x)^2 + |v - a w|^2, where the prior w is
    the translator's gradient at the mean z, and a is the least-squares coefficient of s on w.x. The solution is
    v = (G + I)^-1 (mean(s x) + a w), with G the correlation of x.
    """
    gradient = torch.cat(concept_directions(networks, mean_activations(probe)), dim=1)
    device, text = gradient.device, networks.concepts.require_embeddings()
    if text.shape[1] != probe.covariance.shape[1]:
        raise CefamError(
            f"The concepts' embeddings have {text.shape[1]} dimensions, those of the probe {probe.covariance.shape[1]}: they come from "
            f"two vision-language models. Make the probe with the translator's."
        )
    scale, correlation, covariance = (v.to(device) for v in (probe.scale, probe.correlation, probe.covariance))
    with single_precision(device):
        seen = F.normalize(text.to(device), dim=1) @ covariance.T  # mean(s x), (T, C)
        prior = gradient * scale
        explained = (prior @ correlation * prior).sum(dim=1, keepdim=True)
        share = (prior * seen).sum(dim=1, keepdim=True) / explained.clamp_min(torch.finfo(torch.float32).tiny)
        factor = torch.linalg.cholesky(correlation + torch.eye(len(scale), device=device))
        found = torch.cholesky_solve((seen + share * prior).T, factor).T / scale
    return list(torch.split(found, list(networks.classifier.channels), dim=1))


@torch.no_grad()
def probe_directions(networks: Networks, probe: Probe, regressed: Sequence[Tensor]) -> list[Tensor]:
    """Directions of regression and translator together, for all concepts, one (T, C_l) per stage.

    Each is divided by the deviation of its score over the probe, so that both count the same: which of them finds better
    regions differs from one set of photographs to another, and their sum is close to the better one.
    """
    found = torch.cat(list(regressed), dim=1)
    gradient = torch.cat(concept_directions(networks, mean_activations(probe)), dim=1)
    scale, correlation = (value.to(found.device) for value in (probe.scale, probe.correlation))
    channels = list(networks.classifier.channels)
    with single_precision(found.device):
        each = [_refitted(networks, probe, found * scale, channels), gradient * scale]
        deviation = [(value @ correlation * value).sum(dim=1, keepdim=True).clamp_min(0).sqrt() for value in each]
    tiny = torch.finfo(torch.float32).tiny
    total = sum((value / size.clamp_min(tiny) for value, size in zip(each, deviation, strict=True)), torch.zeros(()))
    return list(torch.split(total / scale, channels, dim=1))


def _refitted(networks: Networks, probe: Probe, directions: Tensor, channels: Sequence[int]) -> Tensor:
    """Directions (T, C) on the scaled z, each stage's part multiplied by what the probe confirms of it.

    Least squares of the score s on the L parts p_l . x of a concept's direction, with factors in [0, ``LARGEST``].
    """
    text = F.normalize(networks.concepts.require_embeddings().to(directions.device), dim=1)
    correlation, covariance = (value.to(directions.device) for value in (probe.correlation, probe.covariance))
    seen = text @ covariance.T
    stage = torch.repeat_interleave(torch.arange(len(channels)), torch.tensor(channels)).to(directions.device)
    parts = [directions * (stage == number) for number in range(len(channels))]
    gram = torch.stack([torch.stack([(p @ correlation * q).sum(dim=1) for q in parts], -1) for p in parts], -2)
    size = gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    damped = gram / size.view(-1, 1, 1) + 1e-6 * torch.eye(len(channels), device=gram.device)
    explained = torch.stack([(p * seen).sum(dim=1) for p in parts], -1) / size.unsqueeze(1)
    factor = torch.linalg.solve(damped, explained).clamp(0, LARGEST)
    factor = torch.where((factor > 0).any(dim=1, keepdim=True), factor, torch.ones_like(factor))
    return directions * factor[:, stage]


def mean_activations(probe: Probe) -> list[Tensor]:
    """Mean z over the probe's photographs, one (C_l,) per stage."""
    return [value.float() for value in probe.mean]
