"""Concept directions in the space of pooled activations z, shared by all images: translator gradients, and regression."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.encoding import Networks, single_precision
from cefam.attribution.scores import similarity_gradient
from cefam.errors import CefamError
from cefam.probe.stored import Probe


@torch.no_grad()
def concept_directions(networks: Networks, at: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of the translator's similarity S with respect to z, for all concepts, one (T, C_l) per stage.

    Args:
        networks: classifier, translator and concepts.
        at: pooled activations z at which the gradient is taken, one (C_l,) per stage.
    """
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

    Args:
        networks: classifier, translator and concepts.
        probe: of the same classifier and vision-language model.

    Raises:
        CefamError: if the concepts' embeddings are not of the probe's vision-language model.
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


def mean_activations(probe: Probe) -> list[Tensor]:
    """Mean z over the probe's photographs, one (C_l,) per stage."""
    return [value.float() for value in probe.mean]
