"""Adapter for attribution libraries: a module from images to scores, differentiable with respect to the pixels."""

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cefam.attribution.explainer import Explainer
from cefam.attribution.scores import pool
from cefam.attribution.types import Activated
from cefam.errors import CefamError
from cefam.images.views import resize_regions
from cefam.methods.base import MethodContext, RegionMethod
from cefam.pairs import Candidates, ConceptPairs
from cefam.towers.taps import LOCK, tapped

Of = Literal["class", "concept"]


class ScoreModel(nn.Module):
    """Views (B, 3, H, W) to class scores (B, classes), or to similarities S with the concepts (B, T).

    Uses the original, unfolded network, whose layers can be accessed by name.
    """

    def __init__(self, explainer: Explainer, of: Of) -> None:
        super().__init__()
        self.of, self.explainer = of, explainer
        self.logits = explainer.classifier.unfolded()

    @property
    def last_stage(self) -> nn.Module:
        """The module whose output is the last stage's map."""
        return self.logits.module.get_submodule(self.explainer.classifier.stages[-1].tap)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of views (B, 3, H, W)."""
        if self.of == "class":
            return self.logits(images)  # type: ignore[no-any-return]
        classifier = self.explainer.classifier
        captured: list[Any] = [None] * len(classifier.stages)
        size = classifier.preprocessing.size or images.shape[-2:]
        with LOCK, tapped(self.logits.module, classifier.stages, captured, size):
            self.logits(images)
        pooled = [pool(activation.float()) for _, activation, _ in captured]
        return self.explainer.networks.similarity(self.explainer.translator(pooled))


def floats(activated: Activated) -> Tensor:
    """Copy of the views of a batch (B, 3, H, W) as floats in [0, 1], which may require gradients."""
    images = activated.images
    return images.float() / 255 if images.dtype == torch.uint8 else images.clone()


def needed(package: str, method: str) -> ModuleType:
    """Import a package of the extra "methods"."""
    try:
        return import_module(package)
    except ImportError as error:
        raise CefamError(f"{method} needs {package}, which is not installed: pip install 'cefam[methods]'.") from error


class ScoreMapRegions(RegionMethod):
    """Base class of saliency methods, which explain a score by a single map; one candidate.

    The map of the class score is the same for all concepts of an image. Subclasses define :meth:`maps`.

    Args:
        context: provides the classifier, and the trained translator for concept scores.
        of: "class": explain the output of the most probable class; "concept": explain the concept's similarity S.
    """

    stage = -1  # index of the stage whose map it is

    def __init__(self, context: MethodContext, of: Of = "concept") -> None:
        super().__init__(context)
        if of not in get_args(Of):
            raise CefamError(f"of must be {' or '.join(map(repr, get_args(Of)))}, got {of!r}.")
        self.of, self.explainer = of, context.trained.explainer()

    @cached_property
    def view(self) -> ScoreModel:
        """The score as a module, on the classifier's device."""
        return ScoreModel(self.explainer, self.of).eval()

    def maps(self, activated: Activated, image: Tensor, target: Tensor) -> Tensor:
        """Maps (P, h, w) of score indices ``target`` (P,) for image indices ``image`` (P,)."""
        raise NotImplementedError

    @torch.inference_mode(False)
    def regions(
        self,
        activated: Activated,
        pairs: ConceptPairs,
        size: Sequence[int],
        num_candidates: int,
        target: Tensor | None = None,
    ) -> Candidates:
        """One candidate per pair; see :class:`cefam.methods.RegionMethod`."""
        pairs = pairs.to(activated.images.device)
        with LOCK, torch.enable_grad():  # the libraries hook the network, too
            if self.of == "class":
                found = self._class_maps(activated, target)[pairs.image]
            elif len(pairs):
                found = self.maps(activated, pairs.image, pairs.concept)
            else:
                found = torch.zeros(0, 1, 1, device=pairs.image.device)
        return Candidates.ranked(resize_regions(found.detach().float(), size).unsqueeze(1), self.stage)

    def _class_maps(self, activated: Activated, target: Tensor | None) -> Tensor:
        """Maps of a class of each image (B, h, w)."""

        def of(target: Tensor) -> Tensor:
            return self.maps(activated, torch.arange(len(target), device=target.device), target)

        if target is not None:
            return of(target.to(activated.images.device))
        predicted = self.explainer.classifier.probabilities(activated.output.logits).argmax(dim=1)
        return activated.once((type(self), self), lambda: of(predicted))
