"""Explainer: images -> concepts, their regions and contributions. Inference only, without training or data sets."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Self, Unpack, get_args

import torch
from torch import Tensor

from cefam.attribution.candidates import check_range, matched
from cefam.attribution.direct import direct_effect
from cefam.attribution.encoding import Encoding, Networks
from cefam.attribution.explain import ExplainOptions, classes_of, explain, to_photograph
from cefam.attribution.fused import FusedMaps
from cefam.attribution.impact import association, contribution
from cefam.attribution.scores import log_probability
from cefam.attribution.types import Activated, Contribution, Images, Picture, Regions
from cefam.attribution.weights import regions_of
from cefam.attribution.why_not import why_not
from cefam.concepts.sets import ConceptSet
from cefam.concepts.vocabularies import Concept
from cefam.errors import CefamError
from cefam.explanations import Explanation
from cefam.explanations.comparison import Comparison
from cefam.io.identity import weights_fingerprint
from cefam.pairs import ConceptPairs
from cefam.probe.stored import Probe
from cefam.settings import Derivative, MethodSettings, SettingsChanges
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.identity import CLASSIFIER_KEYS, VLM_KEYS, check_identity
from cefam.towers.stages import ClassifierOutput
from cefam.towers.vlm import VisionLanguageModel
from cefam.translator import Translator

RegionRule = Literal["beyond", "ce-fam"]


class Explainer:
    """CE-FAM for a frozen classifier and a trained translator.

    Args:
        classifier: the frozen classifier.
        translator: trained for this classifier's stages.
        concepts: a concept set with embeddings.
        vlm: needed for :meth:`with_texts` and for the VLM's own scores.
        doubts: reasons not to trust concepts, by concept number (from ``cefam doctor``).
        probe: of the classifier and the VLM, for more exact regions of all stages.
        settings: settings of the method; ``None``: the published defaults.
        changes: settings to override, by name (:class:`cefam.settings.MethodSettings`).

    Raises:
        CefamError: if translator and classifier, or translator and embeddings, are incompatible.

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
        probe: Probe | None = None,
        **changes: Unpack[SettingsChanges],
    ) -> None:
        self.networks = Networks(classifier, translator, concepts)
        self.classifier, self.translator, self.concepts, self.vlm = classifier, translator, concepts, vlm
        self.doubts, self.probe = dict(doubts or {}), probe
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
        """An explainer for text embeddings (T, D) without words; each concept's word is its index."""
        words = ConceptSet.from_words(map(str, range(len(text_embeddings))), start=0).concepts
        scale, bias = float(logit_scale), float(logit_bias)
        return cls(classifier, translator, ConceptSet(words, text_embeddings, scale, bias, probability), **changes)

    def with_texts(self, texts: Sequence[str | Concept]) -> "Explainer":
        """An explainer with these words or concepts added; their indices follow those of the existing concepts.

        Raises:
            CefamError: without a vision-language model, or if it is not the one that the translator was trained for.
        """
        if self.vlm is None:
            raise CefamError("New texts need the vision-language model that the translator mimics: pass it as `vlm`.")
        concepts = self.concepts.extended(texts, self.vlm)
        return Explainer(self.classifier, self.translator, concepts, self.vlm, self.settings, self.doubts, self.probe)

    def identity(self) -> dict[str, Any]:
        """Everything that determines an explanation besides its image and options; see :mod:`cefam.io.identity`."""
        return {
            "classifier": [self.classifier, self.classifier.class_names, self.classifier.outputs],
            "translator": self.translator,
            "concepts": self.concepts,
            "vlm": self.vlm,
            "settings": self.settings.to_dict(),
            "doubts": self.doubts,
            "probe": self.probe,
        }

    @cached_property
    def fused_maps(self) -> FusedMaps:
        """The maps of all stages together, with directions from the probe if there is one.

        Raises:
            CefamError: if the probe is of another classifier or vision-language model.
        """
        if self.probe is not None:
            check_identity("classifier", self.probe.manifest.classifier, self.classifier.identity(), CLASSIFIER_KEYS)
            if self.vlm is not None:
                check_identity("vision-language model", self.probe.manifest.vlm, self.vlm.freeze().identity(), VLM_KEYS)
        return FusedMaps(self.networks, self.probe)

    def to(self, device: torch.device | str) -> Self:
        """Move the networks to a device; returns the explainer."""
        for network in (self.classifier, self.translator, self.vlm):
            if network is not None:
                network.to(device)
        return self

    def encode(self, images: Tensor, output: ClassifierOutput | None = None) -> Encoding:
        """Run the networks on images (B, 3, H, W); see :meth:`cefam.attribution.encoding.Networks.encode`."""
        return self.networks.encode(images, output)

    def scores(self, images: Tensor | Encoding) -> Tensor:
        """Concept prediction scores in [0, 1], double: softmax over all concepts, or sigmoid: (B, T)."""
        return log_probability(self._encoded(images).similarity, self.concepts.probability).exp()

    def evidence(self, images: Tensor | Encoding) -> Tensor:
        """Evidence that each concept is in each image, on the scale of S (B, T): see :mod:`cefam.attribution.evidence`."""
        encoding, fused = self._encoded(images), self._fused("beyond") or self.fused_maps
        return fused.evidence(Activated(encoding.images, encoding.output), encoding.similarity)

    def _encoded(self, images: Tensor | Encoding) -> Encoding:
        return images if isinstance(images, Encoding) else self.encode(images)

    def _with(self, derivative: Derivative | None = None, num_channels: int | None = None) -> MethodSettings:
        settings = self.settings if derivative is None else self.settings.changed(derivative=derivative)
        return settings if num_channels is None else settings.changed(num_channels=num_channels)

    @torch.inference_mode(False)  # gradients are needed even if the caller is in inference mode
    @torch.no_grad()
    def regions(self, images: Tensor | Encoding, pairs: ConceptPairs, derivative: Derivative | None = None) -> Regions:
        """Regions of pairs at every stage (eq. 11, 12).

        Args:
            images: (B, 3, H, W), or their encoding.
            pairs: P (image, concept) pairs.
            derivative: "total" or "branch"; ``None``: as in the settings.

        Returns:
            Maps at each stage's resolution, channel weights and importances.

        Raises:
            CefamError: for an unknown derivative, or a pair with an image or concept index out of range.
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
        """Association of each stage with each concept's score (section 3.3): (P, L), double.

        Args:
            images: (B, 3, H, W), or their encoding.
            pairs: P pairs.
            num_channels: K; in a stage with fewer channels, all are masked; ``None``: as in the settings.
            regions: regions of the same pairs; ``None``: they are computed.
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
        """Decrease of the class probability when a concept's channels are masked in the classifier (section 3.4).

        Args:
            images: (B, 3, H, W), or their encoding.
            pairs: P pairs.
            target: the class, one for all or (B,); ``None``: each image's most probable one.
            num_channels: K; ``None``: as in the settings.
            stage: stage to mask (P,); ``None``: the stage with the largest association.
            regions: regions of the same pairs; ``None``: they are computed.

        Returns:
            Values, curves and masked stages; a positive value means that the concept supports the class.

        Raises:
            CefamError: for an unknown stage or class, a stage where the network cannot be resumed, or ``num_channels`` below 1.
        """
        settings, encoding = self._with(num_channels=num_channels), self._encoded(images)
        pairs = pairs.to(encoding.device)
        regions = self.regions(encoding, pairs) if regions is None else regions
        if stage is None:
            stage = association(self.networks, encoding, pairs, regions.importance, settings).argmax(dim=1)
        if stage.shape != pairs.image.shape:
            raise CefamError(f"`stage` needs one entry per pair, ({len(pairs)},), got {tuple(stage.shape)}.")
        check_range("stage", stage, len(regions.maps))
        classes, stage = classes_of(self.classifier, encoding, target), stage.to(encoding.device)
        return contribution(self.networks, encoding, pairs, regions.importance, stage, classes, settings)

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

        One backward pass serves all pairs. The sign matches the effects of edits more often than the paper's contribution does
        (docs/research/contributions.md). NaN if the classifier is not differentiable. Arguments as for :meth:`contribution`.
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
        method: RegionRule = "beyond",
    ) -> list[Explanation]:
        """Explain a class of each image by concepts, their regions and contributions.

        Args:
            images: a tensor (B, 3, H, W), uint8 (channels first or last) or floats in [0, 1]; or one or several photographs,
                PIL images or paths. PIL images and paths get the default view; explanations keep names and sizes.
            top_k: number of best-scoring concepts to explain per image.
            target: the class, one for all or (B,); ``None``: each image's most probable one.
            concepts: concepts that may be explained, as texts or indices; ``None``: all. New texts need the ``vlm``; they are
                scored together with the existing concepts.
            num_channels: K of association and contribution; ``None``: as in the settings.
            derivative: derivative used for the regions; ``None``: as in the settings.
            every_stage: compute contributions at every stage, not only at the chosen one.
            method: "beyond": the region is one map of all stages (:class:`cefam.attribution.fused.FusedMaps`); "ce-fam": the map
                of the stage with the largest association, as published.

        Returns:
            One explanation per image; contributions are ``None`` unless the classifier can be resumed at every stage.

        Raises:
            CefamError: for an unknown class, new texts without a VLM, ``top_k`` below 1, or images of an invalid kind or range.
        """
        explainer, candidates = (self, None) if concepts is None else self.with_candidates(concepts)
        settings, fused = self._with(derivative, num_channels), explainer._fused(method)
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
        method: RegionRule = "beyond",
    ) -> Comparison:
        """Compare the predicted class with another one (Fig. 7).

        Args:
            photograph: a photograph, PIL image or path.
            other: the class to compare with, different from the predicted class or ``target``.
            top_k: number of concepts shown per class, by size of the effect.
            target: class to compare instead of the predicted one.
            concepts: as for :meth:`explain`.
            num_channels: as for :meth:`explain`.
            method: as for :meth:`explain`.

        Returns:
            Both explanations and, for the leading concepts, how much of their region must be masked to change the prediction.

        Raises:
            CefamError: if both classes are the same, or one does not exist.
        """
        explainer, candidates = (self, None) if concepts is None else self.with_candidates(concepts)
        settings, fused = self._with(num_channels=num_channels), explainer._fused(method)
        options = ExplainOptions(settings, top_k, candidates, False, fused, self.vlm, self.doubts)
        picture = to_photograph(photograph, self.classifier, "image")
        return why_not(explainer.networks, picture, other, target, options)

    def _fused(self, method: RegionRule) -> FusedMaps | None:
        if method not in (rules := get_args(RegionRule)):
            raise CefamError(f"method must be {' or '.join(map(repr, rules))}, got {method!r}.")
        if method == "beyond" and self.fused_maps.made_for != weights_fingerprint(self.translator):
            self.__dict__.pop("fused_maps", None)  # the translator was trained further
        return None if method == "ce-fam" else self.fused_maps

    def with_candidates(self, concepts: Sequence[str | int] | ConceptSet) -> "tuple[Explainer, list[int]]":
        """An explainer that includes these concepts, and their indices in it."""
        found, new = matched(self.concepts, concepts)
        explainer = self.with_texts(new) if new else self
        return explainer, list(dict.fromkeys([*found, *range(len(self.concepts), len(explainer.concepts))]))
