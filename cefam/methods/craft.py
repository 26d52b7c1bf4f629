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
from cefam.images.views import EvaluationView
from cefam.methods.associations import Associations, AssociationsAbout, per_concept, prompts_of
from cefam.methods.base import MethodContext
from cefam.methods.neurons import NeuronRegions, encoded
from cefam.methods.saliency import needed
from cefam.methods.www import TEMPLATE, concept_weights, selected
from cefam.towers.vlm import encode_images


class CRAFTRegions(NeuronRegions):
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
        if factors < 1 or examples < 1 or photographs < examples:
            raise CefamError(
                f"CRAFT needs factors and examples above 0 and at least as many photographs, got {factors}, {examples}, {photographs}."
            )
        maps, embedding = _read(context, images, photographs, EvaluationView(resize, size))
        if len(maps) < examples:
            raise CefamError(f"{images} holds {len(maps)} photograph(s), fewer than the {examples} that name a factor.")
        values = maps.flatten(2).transpose(1, 2).flatten(0, 1)
        decomposition = needed("sklearn.decomposition", "CRAFT")  # coordinate descent
        self.nmf: Any = decomposition.NMF(factors, init="nndsvda", random_state=seed, max_iter=400, tol=1e-3)
        with warnings.catch_warnings(action="ignore"):  # ConvergenceWarning
            used = torch.from_numpy(self.nmf.fit_transform(values.cpu().numpy())).float()
        self.length = torch.from_numpy(self.nmf.components_).norm(dim=1).float()  # norms of the factors
        strength = (used * self.length).view(len(maps), -1, factors).mean(dim=1)
        best = strength.argsort(dim=0, descending=True, stable=True)[:examples]
        texts, of_concept = prompts_of(context.concepts, prompt)
        bare = encoded(context, [(TEMPLATE if prompt is None else prompt).format("").strip()])[0]
        weights = concept_weights(embedding[best.T], encoded(context, texts), bare)
        factor, text = selected(weights).nonzero(as_tuple=True)
        named = per_concept(factor, text, weights[factor, text], of_concept)
        options = {"images": images, "factors": factors, "photographs": photographs, "examples": examples}
        options |= {"prompt": prompt, "resize": resize, "size": size, "seed": seed}
        about, last = AssociationsAbout.of(context, "craft", options), len(context.classifier.stages) - 1
        super().__init__(context, Associations.of_stages(about, [(last, *named)]))

    def neurons(self, activated: Activated) -> Sequence[Tensor]:
        """Maps of the stages; at the last one, of the factors instead of its channels."""
        *earlier, last = activated.output.activations
        return [*earlier, activated.once((type(self), self), lambda: self._maps(last.float()))]

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
