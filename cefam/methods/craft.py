"""Concepts as factors of the last stage's activations (CRAFT, Fel et al., CVPR 2023), named by the vision-language model.

Non-negative matrix factorization (NMF) of the activations at all positions, A ~ U W: W (R, C) are the factors, U their
coefficients at each position. Factors are named as WWW names neurons, by the photographs with the largest coefficients. (CRAFT
factorizes crops of images of one class and does not name the factors; here all photographs are factorized together.)
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.types import Activated
from cefam.datasets.photographs import Photographs, views_of
from cefam.errors import CefamError
from cefam.images.views import EvaluationView, resize_regions
from cefam.methods.associations import per_concept, prompts_of
from cefam.methods.base import MethodContext, RegionMethod
from cefam.methods.neurons import encoded
from cefam.methods.saliency import needed
from cefam.methods.www import TEMPLATE, concept_weights, selected
from cefam.pairs import Candidates, ConceptPairs, slots
from cefam.towers.vlm import encode_images


class CRAFTRegions(RegionMethod):
    """Maps of the factors that are associated with a concept; concepts without a factor have no region.

    Args:
        context: must have a VLM.
        images: folder of photographs or shards to factorize.
        factors: number of factors R.
        photographs: maximum number of photographs, evenly spaced.
        examples: number of photographs used to name a factor.
        prompt: prompt template, with ``{}`` for the concept's word; ``None``: each concept's own prompt.
        resize: short side of the photographs before the center crop; ``None``: not resized.
        size: side of the crop; ``None``: no crop.
        seed: seed of the NMF initialization.
    """

    def __init__(
        self,
        context: MethodContext,
        images: str,
        factors: int = 64,
        photographs: int = 500,
        examples: int = 10,
        prompt: str | None = TEMPLATE,
        resize: int | None = None,
        size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(context)
        if factors < 1 or examples < 1 or photographs < examples:
            raise CefamError(
                f"CRAFT needs factors and examples above 0 and at least as many photographs, got {factors}, {examples}, {photographs}."
            )
        self.last = len(context.classifier.stages) - 1
        maps, embedding = _read(context, images, photographs, EvaluationView(resize, size))
        if len(maps) < examples:
            raise CefamError(f"{images} holds {len(maps)} photograph(s), fewer than the {examples} that name a factor.")
        values = maps.flatten(2).transpose(1, 2).flatten(0, 1)
        decomposition = needed("sklearn.decomposition", "CRAFT")  # coordinate descent
        self.nmf: Any = decomposition.NMF(factors, init="nndsvda", random_state=seed, max_iter=400, tol=1e-3)
        with warnings.catch_warnings(action="ignore"):  # ConvergenceWarning
            used = torch.from_numpy(self.nmf.fit_transform(values.cpu().numpy())).float()
        length = torch.from_numpy(self.nmf.components_).norm(dim=1).float()  # norms of the factors
        self.length = length
        strength = (used * length).view(len(maps), -1, factors).mean(dim=1)
        best = strength.argsort(dim=0, descending=True, stable=True)[:examples]
        texts, of_concept = prompts_of(context.concepts, prompt)
        bare = encoded(context, [(TEMPLATE if prompt is None else prompt).format("").strip()])[0]
        weights = concept_weights(embedding[best.T], encoded(context, texts), bare)
        factor, text = selected(weights).nonzero(as_tuple=True)
        self.factor, self.concept, self.score = per_concept(factor, text, weights[factor, text], of_concept)

    def best(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best factors of every concept (T, Q), their scores, and which entries are valid."""
        assert self.context is not None
        order = self.score.argsort(descending=True, stable=True)
        place = slots(self.concept[order], len(self.context.concepts))
        order, place = order[place < count], place[place < count]
        factor = torch.zeros(len(self.context.concepts), count, dtype=torch.long)
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
        """Coefficient of each factor at each position: (B, R, H, W)."""
        values = activation.flatten(2).transpose(1, 2).clamp_min(0)
        found = self.nmf.transform(values.flatten(0, 1).cpu().numpy())
        parts = (torch.from_numpy(found).float() * self.length).to(activation.device)
        maps: Tensor = parts.view(*values.shape[:2], -1).transpose(1, 2)
        return maps.reshape(len(activation), -1, *activation.shape[-2:])


@torch.no_grad()
def _read(context: MethodContext, images: str, most: int, view: EvaluationView) -> tuple[Tensor, Tensor]:
    """Non-negative maps of the last stage (N, C, H, W) and unit embeddings (N, D) of at most ``most`` photographs, on the CPU."""
    if context.vlm is None:
        raise CefamError("CRAFT names its factors by texts: set `model.vlm`.")
    photographs = Photographs.read(images)
    step, first = max(1, -(-photographs.count // most)), 0
    maps, embeddings = [], []
    for group in photographs.groups:
        pictures = group.open()[-first % step :: step]
        first += group.count
        for batch in views_of(pictures, view, 0, 0, 64, 0) if pictures else ():
            views = batch.to(context.classifier.device)  # the VLM's, too
            maps.append(context.classifier(views).activations[-1].float().clamp_min(0).cpu())
            embeddings.append(F.normalize(encode_images(context.vlm, views).float(), dim=-1).cpu())
    return torch.cat(maps), torch.cat(embeddings)
