"""Concepts as factors of the last stage's activations (CRAFT, Fel et al., CVPR 2023), named by the vision-language model.

Activations at every position are factored into non-negative parts, A ~ U W (NMF): W (R, C) are the factors, U how much of each is at
a position. A factor is named as WWW names a neuron, by the photographs in which it is strongest. (CRAFT factors crops of the images
of one class and leaves its factors without names; here they are factors of all photographs, for any concept.)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.datasets.photographs import groups, views_of
from cefam.errors import CefamError
from cefam.methods.associations import per_concept, prompts_of
from cefam.methods.base import Activated, Bench, RegionMethod
from cefam.methods.neurons import encoded
from cefam.methods.www import TEMPLATE, concept_weights, selected
from cefam.pairs import Candidates, ConceptPairs, slots
from cefam.towers.vlm import encode_images
from cefam.views import View, resize_regions

TINY = 1e-8


def factorize(values: Tensor, rank: int, steps: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Non-negative factors of values (N, C) >= 0: U (N, R), W (R, C), by multiplicative updates (Lee and Seung, 2001)."""
    random = torch.Generator().manual_seed(seed)
    scale = (values.mean() / rank).clamp_min(TINY).sqrt()
    u, w = (
        scale * (torch.rand(*shape, generator=random) + 0.1) for shape in ((len(values), rank), (rank, values.shape[1]))
    )
    for _ in range(steps):
        u = u * (values @ w.T) / (u @ (w @ w.T)).clamp_min(TINY)
        w = w * (u.T @ values) / ((u.T @ u) @ w).clamp_min(TINY)
    length = w.norm(dim=1).clamp_min(TINY)
    return u * length, w / length.unsqueeze(1)


def parts_of(values: Tensor, factors: Tensor, steps: int = 50) -> Tensor:
    """How much of each factor (R, C) is in values (N, C): U (N, R) >= 0, by the same updates with W held."""
    products, gram = values @ factors.T, factors @ factors.T
    u = products.clamp_min(TINY)
    for _ in range(steps):
        u = u * products / (u @ gram).clamp_min(TINY)
    return u


class CRAFTRegions(RegionMethod):
    """Maps of the factors that are associated with a concept; a concept of no factor has no region.

    Args:
        bench: with classifier and VLM.
        images: a folder of photographs or shards, from which the factors come.
        factors: R, their number.
        photographs: at most so many are read, evenly spread.
        examples: photographs by which a factor is named.
        prompt: the text of a concept, with ``{}`` for its word; ``None``: the concept's own prompt.
        resize: short side of the photographs before the central crop; ``None``: as they are.
        size: side of the crop; ``None``: none.
        seed: of the first factors.
    """

    def __init__(
        self,
        bench: Bench,
        images: str,
        factors: int = 64,
        photographs: int = 500,
        examples: int = 10,
        prompt: str | None = TEMPLATE,
        resize: int | None = None,
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(bench)
        if factors < 1 or examples < 1 or photographs < examples:
            raise CefamError(
                f"CRAFT needs factors and examples above 0 and at least as many photographs, got {factors}, {examples}, {photographs}."
            )
        self.last = len(bench.classifier.stages) - 1
        maps, embedding = _read(bench, images, photographs, View(resize, size))
        if len(maps) < examples:
            raise CefamError(f"{images} holds {len(maps)} photograph(s), fewer than the {examples} that name a factor.")
        values = maps.flatten(2).transpose(1, 2).flatten(0, 1)
        used, self.factors = factorize(values, factors, seed=seed)
        strength = used.view(len(maps), -1, factors).mean(dim=1)
        best = strength.argsort(dim=0, descending=True, stable=True)[:examples]
        texts, of_concept = prompts_of(bench.concepts, prompt)
        bare = encoded(bench, [(TEMPLATE if prompt is None else prompt).format("").strip()])[0]
        weights = concept_weights(embedding[best.T], encoded(bench, texts), bare)
        factor, text = selected(weights).nonzero(as_tuple=True)
        self.factor, self.concept, self.score = per_concept(factor, text, weights[factor, text], of_concept)

    def best(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best factors of every concept (T, Q), their scores, and where there is one."""
        assert self.bench is not None
        order = self.score.argsort(descending=True, stable=True)
        place = slots(self.concept[order], len(self.bench.concepts))
        order, place = order[place < count], place[place < count]
        factor = torch.zeros(len(self.bench.concepts), count, dtype=torch.long)
        score, valid = torch.zeros(factor.shape, dtype=torch.double), torch.zeros(factor.shape, dtype=torch.bool)
        where = (self.concept[order], place)
        factor[where], score[where], valid[where] = self.factor[order], self.score[order], True
        return factor, score, valid

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """See :class:`cefam.methods.RegionMethod`."""
        device = activated.images.device
        pairs = pairs.to(device)
        maps = activated.once((type(self), self), lambda: self._maps(activated.output.activations[-1].float()))
        factor, score, valid = (part.to(device)[pairs.concept] for part in self.best(num_candidates))
        found = maps[pairs.image.unsqueeze(1), factor]
        large = resize_regions(found.flatten(0, 1), size).view(*factor.shape, *size)
        return Candidates(large, score, torch.full_like(factor, self.last), valid)

    def _maps(self, activation: Tensor) -> Tensor:
        """How much of each factor is at each position: (B, R, H, W)."""
        values = activation.flatten(2).transpose(1, 2).clamp_min(0)
        parts = parts_of(values.flatten(0, 1), self.factors.to(activation.device))
        return parts.view(*values.shape[:2], -1).transpose(1, 2).reshape(len(activation), -1, *activation.shape[-2:])


@torch.no_grad()
def _read(bench: Bench, images: str, most: int, view: View) -> tuple[Tensor, Tensor]:
    """Maps of the last stage (N, C, H, W), not below 0, and unit embeddings (N, D) of some photographs."""
    if bench.vlm is None:
        raise CefamError("CRAFT names its factors by texts: set `model.vlm`.")
    found = groups(images)
    total = sum(group.count for group in found)
    step, first = max(1, -(-total // most)), 0
    maps, embeddings = [], []
    for group in found:
        pictures = group.open()[-first % step :: step]
        first += group.count
        for batch in views_of(pictures, view, 0, 0, 64, 0) if pictures else ():
            maps.append(bench.classifier(batch).activations[-1].float().clamp_min(0))
            embeddings.append(F.normalize(encode_images(bench.vlm, batch).float(), dim=-1))
    return torch.cat(maps), torch.cat(embeddings)
