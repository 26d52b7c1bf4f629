"""The published procedure, literally: one pair at a time, one forward and one backward each, NRA by a loop over pixels.

A reference for values and for time; written from the paper's text and the rules in ``docs/reference/conformance.md``.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.explainer import Explainer


class LiteralPair:
    """One image and one concept: maps of all stages by hooks and autograd, then the masking of pooled activations."""

    def __init__(self, explainer: Explainer, image: Tensor, concept: int) -> None:
        self.explainer, self.concept = explainer, concept
        classifier = explainer.classifier
        captured: list[Tensor] = []
        handles = []
        for index, stage in enumerate(classifier.stages):

            def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor, index: int = index) -> Tensor:
                output = output.requires_grad_() if index == 0 else output
                captured.append(output)
                return output.clone()

            handles.append(classifier.module.get_submodule(stage.tap).register_forward_hook(hook))
        with torch.enable_grad():
            self.logits = classifier.module(classifier.preprocessing(image[None]))
            activations = [
                stage.to_map(raw, stage.grid(raw, image.shape[-2:]))[0]
                for stage, raw in zip(classifier.stages, captured, strict=True)
            ]
            self.pooled = [activation.mean(dim=(2, 3)) for activation in activations]
            score = self._similarity(self.pooled)[0, concept]
            gradients = torch.autograd.grad(score, captured)
        for handle in handles:
            handle.remove()
        shaped = [
            stage.to_map(raw, stage.grid(raw, image.shape[-2:]))[0]
            for stage, raw in zip(classifier.stages, gradients, strict=True)
        ]
        self.weights = [gradient.mean(dim=(2, 3)) for gradient in shaped]
        self.maps = [
            (w[..., None, None] * a.detach()).sum(dim=1).relu()[0]
            for w, a in zip(self.weights, activations, strict=True)
        ]

    def _similarity(self, pooled: Sequence[Tensor]) -> Tensor:
        concepts = self.explainer.concepts
        text = concepts.require_embeddings()
        return (
            concepts.logit_scale * F.normalize(self.explainer.translator(pooled), dim=-1) @ text.t()
            + concepts.logit_bias
        )

    @torch.no_grad()
    def association(self, num_channels: int = 20) -> list[float]:
        """Masking impact of every stage: the translator runs once for every masked channel."""
        first = float(self._similarity(self.pooled).double().softmax(dim=1)[0, self.concept])
        found = []
        for stage, z in enumerate(self.pooled):
            importance = self.weights[stage][0] * z[0]
            order = importance.argsort(descending=True, stable=True)[:num_channels].tolist()
            masked, total = [p.clone() for p in self.pooled], 0.0
            for channel in order:
                masked[stage][0, channel] = z.mean()
                score = float(self._similarity(masked).double().softmax(dim=1)[0, self.concept])
                total += (first - score) / first
            found.append(total / len(order))
        return found

    @torch.no_grad()
    def contribution(self, image: Tensor, stage: int, num_channels: int = 20) -> float:
        """Masking impact on the most probable class: the whole classifier runs once for every masked channel."""
        classifier = self.explainer.classifier
        z = self.pooled[stage][0]
        order = (self.weights[stage][0] * z).argsort(descending=True, stable=True)[:num_channels].tolist()
        last = stage == len(self.pooled) - 1
        masked: list[int] = []

        def mask(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output = output.clone()
            for channel in masked:
                output[:, channel] = z.mean() if last else z[channel]
            return output

        handle = classifier.module.get_submodule(classifier.stages[stage].tap).register_forward_hook(mask)
        first = self.logits.double().softmax(dim=1)[0]
        target, total = int(first.argmax()), 0.0
        for channel in order:
            masked.append(channel)
            logits = classifier.module(classifier.preprocessing(image[None]))
            total += float((first[target] - logits.double().softmax(dim=1)[0, target]) / first[target])
        handle.remove()
        return total / len(order)


def nra(region: np.ndarray, mask: np.ndarray) -> float:
    """NRA by the published loop over ranks: IoU at every rank that carries weight, counted pixel by pixel."""
    flat, inside = region.ravel(), mask.ravel()
    order = flat.argsort()[::-1]
    pixels, size = len(flat), int(inside.sum())
    step = pixels // 100
    area = ideal = 0.0
    hits = 0
    for rank in range(pixels):
        hits += bool(inside[order[rank]])
        weight = 1 / pixels if rank < step else 1 / 100 if rank % step == 0 else 0.0
        area += weight * hits / (rank + 1 - hits + size)
        ideal += weight * (rank / size if rank < size else size / rank)
    chance = size / (2 * pixels)
    return max(area - chance, 0) / (ideal - chance)


def epg(region: np.ndarray, mask: np.ndarray) -> float:
    """EPG of the min-max scaled map."""
    scaled = region - region.min()
    return float((scaled * mask).sum() / scaled.sum()) if scaled.sum() > 0 else 0.0
