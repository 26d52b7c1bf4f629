"""Explainer: images -> concepts, their regions, and what they contribute. The method itself, without training or data.

Everything after the scores works on (image, concept) pairs, ragged and batched. This file composes the steps; each one has a
file of its own: ``encoding`` (run the networks), ``weights`` (regions), ``choice`` (which stage), ``contribution``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack

import torch
from torch import Tensor

from cefam.attribution.candidates import check_range, matched
from cefam.attribution.choice import association
from cefam.attribution.contribution import contribution
from cefam.attribution.direct import direct_effect
from cefam.attribution.encoding import Encoding, Networks
from cefam.attribution.explain import ExplainOptions, classes_of, explain, to_photograph
from cefam.attribution.scores import log_probability
from cefam.attribution.types import Contribution, Fused, Images, Picture, Regions
from cefam.attribution.weights import regions_of
from cefam.attribution.why_not import why_not
from cefam.concepts.sets import ConceptSet
from cefam.concepts.vocabularies import Concept
from cefam.errors import CefamError
from cefam.explanations import Explanation
from cefam.explanations.comparison import Comparison
from cefam.pairs import ConceptPairs
from cefam.settings import Derivative, MethodSettings, SettingsChanges
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.types import ClassifierOutput
from cefam.towers.vlm import VisionLanguageModel
from cefam.translator import Translator


class Explainer:
    """CE-FAM for a frozen classifier and a trained translator.

    Args:
        classifier: the frozen classifier.
        translator: trained for this classifier's stages.
        concepts: a concept set with embeddings.
        vlm: only needed for :meth:`with_texts`, and to say what the VLM itself scores.
        doubts: numbers of concepts that should not be trusted, with the reason (``cefam doctor``).
        settings: how the method is computed; ``None``: the published defaults.
        changes: settings that differ from these, by name (:class:`cefam.settings.MethodSettings`).

    Raises:
        CefamError: where translator and classifier, or translator and embeddings, do not fit.

    >>> from cefam import load_classifier
    >>> classifier = load_classifier("brodenette")
    >>> translator = Translator(classifier.channels, embedding_dim=8)  # not trained
    >>> explainer = Explainer.from_tensors(classifier, translator, text_embeddings=torch.rand(30, 8), logit_scale=100.0)
    >>> images, pairs = torch.rand(2, 3, 96, 96), ConceptPairs(torch.tensor([0, 0, 1]), torch.tensor([3, 5, 7]))
    >>> [tuple(region.shape) for region in explainer.regions(images, pairs).maps]
    [(3, 48, 48), (3, 24, 24), (3, 12, 12), (3, 6, 6)]
    >>> explainer.association(images, pairs).shape, explainer.contribution(images, pairs).value.shape
    (torch.Size([3, 4]), torch.Size([3]))
    >>> len(explainer.explain(images, top_k=4)[0].concepts)
    4
    """

    def __init__(
        self,
        classifier: FrozenClassifier,
        translator: Translator,
        concepts: ConceptSet,
        vlm: VisionLanguageModel | None = None,
        settings: MethodSettings | None = None,
        doubts: Mapping[int, str] | None = None,
        **changes: Unpack[SettingsChanges],
    ) -> None:
        self.networks = Networks(classifier, translator, concepts)
        self.classifier, self.translator, self.concepts, self.vlm = classifier, translator, concepts, vlm
        self.doubts = dict(doubts or {})
        self.settings = (settings or MethodSettings()).changed(**changes)

    @classmethod
    def from_tensors(
        cls,
        classifier: FrozenClassifier,
        translator: Translator,
        text_embeddings: Tensor,
        logit_scale: float = 1.0,
        logit_bias: float = 0.0,
        probability: str = "softmax",
        **changes: Unpack[SettingsChanges],
    ) -> Self:
        """An explainer for bare text embeddings (T, D); the concepts are called by their index."""
        named = ConceptSet.from_words([str(index) for index in range(len(text_embeddings))], start=0)
        concepts = ConceptSet(named.concepts, text_embeddings, float(logit_scale), float(logit_bias), probability)
        return cls(classifier, translator, concepts, **changes)

    def with_texts(self, texts: Sequence[str | Concept]) -> "Explainer":
        """An explainer that also knows these words or concepts; their indices follow the stored concepts'.

        Raises:
            CefamError: without a vision-language model, or with another one than the translator's.
        """
        if self.vlm is None:
            raise CefamError("New texts need the vision-language model that the translator mimics: pass it as `vlm`.")
        concepts = self.concepts.extended(texts, self.vlm)
        return Explainer(self.classifier, self.translator, concepts, self.vlm, self.settings, self.doubts)

    def identity(self) -> dict[str, Any]:
        """Everything that an explanation depends on beside its image and options; see :mod:`cefam.io.identity`."""
        return {
            "classifier": [self.classifier, self.classifier.class_names, self.classifier.outputs],
            "translator": self.translator,
            "concepts": self.concepts,
            "vlm": self.vlm,
            "settings": self.settings.to_dict(),
            "doubts": self.doubts,
        }

    def encode(self, images: Tensor, output: ClassifierOutput | None = None) -> Encoding:
        """Run the networks on images (B, 3, H, W); see :meth:`cefam.attribution.encoding.Networks.encode`."""
        return self.networks.encode(images, output)

    def scores(self, images: Tensor | Encoding) -> Tensor:
        """Concept prediction scores in [0, 1], double: softmax over all concepts, or sigmoid: (B, T)."""
        return log_probability(self._encoded(images).similarity, self.concepts.probability).exp()

    def _encoded(self, images: Tensor | Encoding) -> Encoding:
        return images if isinstance(images, Encoding) else self.encode(images)

    def _with(self, derivative: Derivative | None = None, num_channels: int | None = None) -> MethodSettings:
        settings = self.settings if derivative is None else self.settings.changed(derivative=derivative)
        return settings if num_channels is None else settings.changed(num_channels=num_channels)

    @torch.inference_mode(False)  # gradients are needed, whatever the caller's mode
    @torch.no_grad()
    def regions(self, images: Tensor | Encoding, pairs: ConceptPairs, derivative: Derivative | None = None) -> Regions:
        """Regions of pairs at every stage (eq. 11, 12).

        Args:
            images: (B, 3, H, W), or their encoding.
            pairs: P (image, concept) pairs.
            derivative: "total" or "branch"; ``None``: as in the settings.

        Returns:
            Maps at every stage's own resolution, channel weights and importances.

        Raises:
            CefamError: for another derivative, or a pair of an image or concept that does not exist.
        """
        settings, encoding = self._with(derivative), self._encoded(images)
        check_range("image", pairs.image, len(encoding.images))
        check_range("concept", pairs.concept, len(self.concepts))
        return regions_of(self.networks, encoding, pairs.to(encoding.device), settings)

    @torch.inference_mode(False)
    @torch.no_grad()
    def association(
        self,
        images: Tensor | Encoding,
        pairs: ConceptPairs,
        num_channels: int | None = None,
        regions: Regions | None = None,
    ) -> Tensor:
        """How much each stage matters to each concept's score (section 3.3): (P, L), double.

        Args:
            images: (B, 3, H, W), or their encoding.
            pairs: P pairs.
            num_channels: K; a stage with fewer channels masks all of them; ``None``: as in the settings.
            regions: of the same pairs, if they are known; else they are computed.

        Raises:
            CefamError: for ``num_channels`` below 1.
        """
        settings, encoding = self._with(num_channels=num_channels), self._encoded(images)
        pairs = pairs.to(encoding.device)
        regions = self.regions(encoding, pairs) if regions is None else regions
        return association(self.networks, encoding, pairs, regions.importance, settings)

    @torch.inference_mode(False)
    @torch.no_grad()
    def contribution(
        self,
        images: Tensor | Encoding,
        pairs: ConceptPairs,
        target: int | Tensor | None = None,
        num_channels: int | None = None,
        stage: Tensor | None = None,
        regions: Regions | None = None,
    ) -> Contribution:
        """How far the class probability falls while a concept's channels are masked in the classifier (section 3.4).

        Args:
            images: (B, 3, H, W), or their encoding.
            pairs: P pairs.
            target: the class, one for all or (B,); ``None``: each image's most probable one.
            num_channels: K; ``None``: as in the settings.
            stage: where to mask, (P,); ``None``: the stage of largest association.
            regions: of the same pairs, if they are known.

        Returns:
            Values, curves and the stages that were masked; a positive value: the concept speaks for the class.

        Raises:
            CefamError: where a stage or class does not exist, a stage is not a cut of the network, or ``num_channels`` is below 1.
        """
        settings, encoding = self._with(num_channels=num_channels), self._encoded(images)
        pairs = pairs.to(encoding.device)
        regions = self.regions(encoding, pairs) if regions is None else regions
        if stage is None:
            stage = association(self.networks, encoding, pairs, regions.importance, settings).argmax(dim=1)
        if stage.shape != pairs.image.shape:
            raise CefamError(f"`stage` needs one entry per pair, ({len(pairs)},), got {tuple(stage.shape)}.")
        check_range("stage", stage, len(regions.maps))
        classes = classes_of(self.classifier, encoding, target)
        return contribution(
            self.networks, encoding, pairs, regions.importance, stage.to(encoding.device), classes, settings
        )

    @torch.inference_mode(False)
    @torch.no_grad()
    def direct_effect(
        self,
        images: Tensor | Encoding,
        pairs: ConceptPairs,
        target: int | Tensor | None = None,
        regions: Regions | None = None,
    ) -> Tensor:
        """Cosine of each concept's importances at the last stage with the gradient of the class's log-odds: (P,), double, in [-1, 1].

        It takes one backward pass for all pairs; its sign agrees with the effects of edits more often than the paper's contribution
        (docs/research/contributions.md). NaN where the classifier has no gradient. Arguments as for :meth:`contribution`.
        """
        encoding = self._encoded(images)
        pairs = pairs.to(encoding.device)
        regions = self.regions(encoding, pairs) if regions is None else regions
        return direct_effect(
            self.classifier, encoding, pairs, regions.importance[-1], classes_of(self.classifier, encoding, target)
        )

    @torch.inference_mode(False)
    @torch.no_grad()
    def explain(
        self,
        images: Images,
        top_k: int = 8,
        target: int | Tensor | None = None,
        concepts: Sequence[str | int] | ConceptSet | None = None,
        num_channels: int | None = None,
        derivative: Derivative | None = None,
        every_stage: bool = False,
        fused: Fused | None = None,
    ) -> list[Explanation]:
        """Explain a class of each image by concepts, their regions and contributions.

        Args:
            images: a tensor (B, 3, H, W), uint8 (channels first or last) or floats in [0, 1]; or photographs, PIL images and paths, one
                or several, which are cut the usual way, and whose names and sizes the explanations then have.
            top_k: the number of best-scoring concepts that are explained, of each image.
            target: the class, one for all or (B,); ``None``: each image's most probable one.
            concepts: which ones may be explained, as texts or indices; ``None``: all. New texts need the ``vlm``; they are scored
                together with the stored ones.
            num_channels: K of association and contribution; ``None``: as in the settings.
            derivative: of the regions; ``None``: as in the settings.
            every_stage: whether contributions are computed at every stage, not at the chosen one alone.
            fused: gives one map of all stages together, which is then the region (``BeyondRegions(...).maps``); ``None``: the region is
                the chosen stage's map.

        Returns:
            One explanation per image; contributions are ``None`` where a stage is not a cut of the classifier.

        Raises:
            CefamError: for a class that does not exist, new texts without a VLM, ``top_k`` below 1, or images of another kind or range.
        """
        explainer, candidates = (self, None) if concepts is None else self.with_candidates(concepts)
        settings = self._with(derivative, num_channels)
        options = ExplainOptions(settings, top_k, candidates, every_stage, fused, self.vlm, self.doubts)
        return explain(explainer.networks, images, target, options)

    @torch.inference_mode(False)
    @torch.no_grad()
    def why_not(
        self,
        photograph: Picture,
        other: int,
        top_k: int = 8,
        target: int | None = None,
        concepts: Sequence[str | int] | ConceptSet | None = None,
        num_channels: int | None = None,
        fused: Fused | None = None,
    ) -> Comparison:
        """Compare the predicted class with another one (Fig. 7).

        Args:
            photograph: one, or a PIL image or path.
            other: a class that it was not taken for.
            top_k: concepts with the largest effect that are shown for each class.
            target: compared in place of the predicted class.
            concepts: as for :meth:`explain`.
            num_channels: as for :meth:`explain`.
            fused: as for :meth:`explain`.

        Returns:
            Both explanations, and, for the concepts that speak most for the one rather than the other, how much of their region must
            be hidden before the decision changes.

        Raises:
            CefamError: where both classes are the same, or one does not exist.
        """
        explainer, candidates = (self, None) if concepts is None else self.with_candidates(concepts)
        settings = self._with(num_channels=num_channels)
        options = ExplainOptions(settings, top_k, candidates, fused=fused, vlm=self.vlm, doubts=self.doubts)
        photograph = to_photograph(photograph, self.classifier, "image")
        return why_not(explainer.networks, photograph, other, target, options)

    def with_candidates(self, concepts: Sequence[str | int] | ConceptSet) -> "tuple[Explainer, list[int]]":
        """An explainer that knows these concepts, too, and the indices that they have there."""
        found, new = matched(self.concepts, concepts)
        explainer = self.with_texts(new) if new else self
        return explainer, list(dict.fromkeys([*found, *range(len(self.concepts), len(explainer.concepts))]))
