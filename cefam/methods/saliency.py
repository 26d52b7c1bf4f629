"""A classifier as attribution libraries want it: images to scores, differentiable down to the pixels."""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cefam.attribution.explainer import Explainer
from cefam.attribution.scores import pool
from cefam.errors import CefamError
from cefam.images.views import resize_regions
from cefam.methods.base import Activated, MethodContext, RegionMethod
from cefam.pairs import Candidates, ConceptPairs
from cefam.towers.taps import tapped

Of = Literal["class", "concept"]


class ScoreModel(nn.Module):
    """Views (B, 3, H, W) to class scores (B, classes), or to similarities S with the concepts (B, T).

    The network is the one that was given, without folding, so its layers are there to be named.

    Args:
        explainer: with classifier and translator.
        of: "class" or "concept".
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
        """Scores of some views."""
        if self.of == "class":
            return self.logits(images)  # type: ignore[no-any-return]
        classifier = self.explainer.classifier
        captured: list[Any] = [None] * len(classifier.stages)
        with tapped(
            self.logits.module, classifier.stages, captured, classifier.preprocessing.size or images.shape[-2:]
        ):
            self.logits(images)
        pooled = [pool(activation.float()) for _, activation, _ in captured]
        return self.explainer.networks.similarity(self.explainer.translator(pooled))


def floats(activated: Activated) -> Tensor:
    """The views of a batch (B, 3, H, W), floats in [0, 1]: a copy, which a gradient may reach."""
    images = activated.images
    return images.float() / 255 if images.dtype == torch.uint8 else images.clone()


def needed(package: str, method: str) -> ModuleType:
    """A package of the extra "methods".

    Raises:
        CefamError: where it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise CefamError(f"{method} needs {package}, which is not installed: pip install 'cefam[methods]'.") from error


class ScoreMapRegions(RegionMethod):
    """Maps of a score by a method that knows neither stages nor concepts: one candidate.

    The map of the class score is the same for all concepts of an image. Subclasses define :meth:`maps`.

    Args:
        context: with the classifier, and the translator for concept scores.
        of: "class": of the most probable class's output; "concept": of the concept's similarity S.
    """

    def __init__(self, context: MethodContext, of: Of = "concept") -> None:
        super().__init__(context)
        if of not in get_args(Of):
            raise CefamError(f"of must be {' or '.join(map(repr, get_args(Of)))}, got {of!r}.")
        self.of, self.explainer = of, context.trained.explainer()
        self._view: ScoreModel | None = None

    @property
    def view(self) -> ScoreModel:
        """The score as a module, on the classifier's device."""
        if self._view is None:
            self._view = ScoreModel(self.explainer, self.of).eval()
        return self._view

    def maps(self, activated: Activated, image: Tensor, target: Tensor) -> Tensor:
        """Maps (P, h, w) of the scores ``target`` (P,) of the images ``image`` (P,)."""
        raise NotImplementedError

    @torch.inference_mode(False)
    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """See :class:`cefam.methods.RegionMethod`."""
        pairs = pairs.to(activated.images.device)
        with torch.enable_grad():
            if self.of == "concept":
                empty = torch.zeros(0, 1, 1, device=pairs.image.device)
                found = self.maps(activated, pairs.image, pairs.concept) if len(pairs) else empty
            else:
                target = self.explainer.classifier.probabilities(activated.output.logits).argmax(dim=1)
                every = torch.arange(len(target), device=target.device)
                found = activated.once((type(self), self), lambda: self.maps(activated, every, target))[pairs.image]
        found = resize_regions(found.detach().float(), size).unsqueeze(1)
        ones = found.new_ones(len(found), 1)
        return Candidates(found, ones, -ones.long(), ones.bool())
