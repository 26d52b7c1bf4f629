"""A concept's direction: the gradient of its similarity S by the pooled activations z, taken at the mean z of a probe set."""

import torch
from torch import Tensor

from cefam.attribution.encoding import single_precision
from cefam.attribution.scores import similarity_gradient
from cefam.methods.base import Bench
from cefam.methods.neurons import classifier_probe


@torch.no_grad()
def concept_directions(bench: Bench, method: str) -> list[Tensor]:
    """Directions of all concepts at every stage, one (T, C_l) per stage: one for all images.

    Args:
        bench: with the trained translator, and the probe.
        method: who asks, for the error.

    Raises:
        CefamError: where there is no probe, or it is of another classifier.
    """
    trained, probe = bench.trained, classifier_probe(bench, method)
    device = next(trained.translator.parameters()).device
    with single_precision(device):
        mean = [value.float().to(device).unsqueeze(0) for value in probe.mean]
        embedding, pull_back = trained.translator.linearize(mean)
        text = trained.explainer().networks.text(device)
        gradient = similarity_gradient(embedding.expand(len(text), -1), text, trained.concepts.logit_scale)
        return pull_back(gradient, torch.zeros(len(text), dtype=torch.long, device=device))
