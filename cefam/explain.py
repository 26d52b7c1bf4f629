"""Explainer: images -> concepts, their regions, and what they contribute. The method itself, without training or data.

Everything after the scores works on (image, concept) pairs, ragged and batched; the mathematics is in ``regions`` and
``impact``, the running of the networks in ``classifier`` and ``translator``.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor

from cefam import regions as R
from cefam.classifier import ClassifierOutput, FrozenClassifier
from cefam.concepts import ConceptSet
from cefam.explanation import ConceptExplanation, ConceptPairs, Contribution, Encoding, Explanation, Regions
from cefam.impact import Impact, Masking, impact, leading_channels, masked, masked_count, masking
from cefam.stages import StageContext
from cefam.translator import Translator
from cefam.vlm import VisionLanguageModel

Derivative = Literal["total", "branch"]
Preset = Literal["published", "paper"]
# Bytes of one buffer on the CPU: larger ones are fresh memory at every step, which costs more than the work in them.
CPU_BUFFER = 16 * 2**20


def _single_precision(images: Tensor) -> torch.autocast:
    """While open, autocast is off: the first pass of the towers may run in half precision, nothing after it.

    (Running the classifier on in bf16 moved associations by whole tenths: they are differences of small numbers.)
    """
    return torch.autocast(images.device.type, enabled=False)


class Explainer:
    """CE-FAM for a frozen classifier and a trained translator.

    Args:
        classifier: the frozen classifier.
        translator: trained for this classifier's stages.
        concepts: a concept set with embeddings.
        vlm: only needed for :meth:`with_texts`.
        preset: "published" (what the authors' program does) or "paper" (the text's readings); ``docs/conformance.md`` lists
            what differs.
        memory_limit: megabytes that one chunk of pairs may take for intermediate results.
        channel_share: association and contribution mask at most this share of a stage's channels. The published K = 20
            needs no bound in a wide network; it is a whole stage of a narrow one, whatever the concept.

    Raises:
        ValueError: where translator and classifier, or translator and embeddings, do not fit.
    """

    def __init__(
        self,
        classifier: FrozenClassifier,
        translator: Translator,
        concepts: ConceptSet,
        vlm: VisionLanguageModel | None = None,
        preset: Preset = "published",
        memory_limit: float = 1024.0,
        channel_share: float = 1.0,
    ) -> None:
        text = concepts.require_embeddings()
        if translator.channels != classifier.channels:
            raise ValueError(
                f"The translator was made for stages of {translator.channels} channels, the classifier has {classifier.channels}: "
                f"it belongs to another classifier or another choice of stages."
            )
        if text.shape[1] != translator.embedding_dim:
            raise ValueError(
                f"The translator gives {translator.embedding_dim} dimensions, the concepts' embeddings have {text.shape[1]}: they "
                f"come from another vision-language model."
            )
        if preset not in ("published", "paper"):
            raise ValueError(f"preset must be 'published' or 'paper', got {preset!r}.")
        if not 0 < memory_limit < float("inf"):
            raise ValueError(f"memory_limit must be positive and finite (megabytes), got {memory_limit}.")
        if not 0 < channel_share <= 1:
            raise ValueError(f"channel_share must be above 0 and at most 1, got {channel_share}.")
        self.classifier, self.translator, self.concepts, self.vlm = classifier, translator, concepts, vlm
        self.preset, self.memory_limit, self.channel_share = preset, memory_limit, channel_share
        self._text = text

    @classmethod
    def from_tensors(
        cls,
        classifier: FrozenClassifier,
        translator: Translator,
        text_embeddings: Tensor,
        logit_scale: float = 1.0,
        logit_bias: float = 0.0,
        probability: str = "softmax",
        **options: Any,
    ) -> Self:
        """An explainer for bare text embeddings (T, D); the concepts are called by their index."""
        named = ConceptSet.from_words([str(index) for index in range(len(text_embeddings))], start=0)
        concepts = ConceptSet(named.concepts, text_embeddings, float(logit_scale), float(logit_bias), probability)
        return cls(classifier, translator, concepts, **options)

    def with_texts(self, words: Sequence[str]) -> "Explainer":
        """An explainer that also knows these words; their indices follow the stored concepts'."""
        if self.vlm is None:
            raise ValueError("New texts need the vision-language model that the translator mimics: pass it as `vlm`.")
        concepts = self.concepts.extended(words, self.vlm)
        options: Any = {"memory_limit": self.memory_limit, "channel_share": self.channel_share}
        return Explainer(self.classifier, self.translator, concepts, self.vlm, self.preset, **options)

    @torch.no_grad()
    def encode(self, images: Tensor, output: ClassifierOutput | None = None) -> Encoding:
        """Run the classifier (unless its output is given) and the translator.

        Args:
            images: views (B, 3, H, W), uint8 or floats in [0, 1]: the classifier normalizes them itself (one without
                ``preprocessing`` takes them as they are).
            output: the classifier's output for them.
        """
        output = self.classifier(images) if output is None else output
        output = ClassifierOutput(output.logits.float(), [a.float() for a in output.activations], output.context)
        pooled = [R.pool(activation) for activation in output.activations]
        with _single_precision(images):
            embedding, pull_back = self.translator.linearize(pooled)
            return Encoding(images, output, pooled, embedding, self._similarity(embedding), pull_back)

    def _similarity(self, embedding: Tensor) -> Tensor:
        if self._text.device != embedding.device:
            self._text = self._text.to(embedding.device)
        return R.similarity(embedding, self._text, self.concepts.logit_scale, self.concepts.logit_bias)

    def scores(self, images: Tensor | Encoding) -> Tensor:
        """Concept prediction scores in [0, 1], double: softmax over all concepts, or sigmoid: (B, T)."""
        return R.log_probability(self._encoded(images).similarity, self.concepts.probability).exp()

    def _encoded(self, images: Tensor | Encoding) -> Encoding:
        return images if isinstance(images, Encoding) else self.encode(images)

    @torch.inference_mode(False)  # gradients are needed, whatever the caller's mode
    @torch.no_grad()
    def regions(self, images: Tensor | Encoding, pairs: ConceptPairs, derivative: Derivative = "total") -> Regions:
        """Regions of pairs at every stage (eq. 11, 12).

        Args:
            images: (B, 3, H, W), or their encoding.
            pairs: P (image, concept) pairs.
            derivative: "total": the gradient runs through the later stages too (published program); "branch": through
                the translator alone, which needs no backward pass. At the last stage the two are the same.

        Returns:
            Maps at every stage's own resolution, channel weights and importances.

        Raises:
            ValueError: for another derivative, or a pair of an image or concept that is not there.
        """
        if derivative not in ("total", "branch"):
            raise ValueError(f"derivative must be 'total' or 'branch', got {derivative!r}.")
        encoding = self._encoded(images)
        _check_range("image", pairs.image, len(encoding.images))
        _check_range("concept", pairs.concept, len(self.concepts))
        pairs = pairs.to(encoding.embedding.device)
        activations = encoding.output.activations
        with _single_precision(encoding.images):
            pooled_gradients = encoding.pull_back(self._embedding_gradient(encoding, pairs), pairs.image)
            weights = [
                R.branch_weights(gradient, *activation.shape[-2:])
                for gradient, activation in zip(pooled_gradients, activations, strict=True)
            ]
            if derivative == "total" and len(weights) > 1:
                weights[:-1] = self._total_weights(encoding, pairs, pooled_gradients)
            if self.preset == "published":
                weights = [self._before_norm(encoding, pairs, stage, w) for stage, w in enumerate(weights)]
            stages = list(zip(activations, weights, encoding.pooled, strict=True))
            return Regions(
                maps=[R.fuse(activation, w, pairs.image) for activation, w, _ in stages],
                weights=weights,
                importance=[w * z[pairs.image] for _, w, z in stages],
            )

    def _embedding_gradient(self, encoding: Encoding, pairs: ConceptPairs) -> Tensor:
        embedding, text = encoding.embedding[pairs.image], self._text.to(encoding.embedding)[pairs.concept]
        return R.similarity_gradient(embedding, text, self.concepts.logit_scale)

    def _total_weights(
        self, encoding: Encoding, pairs: ConceptPairs, pooled_gradients: Sequence[Tensor]
    ) -> list[Tensor]:
        """Total derivative at all stages but the last, (P, C_l) each; groups of images keep to the memory limit."""
        weights = [torch.zeros_like(gradient) for gradient in pooled_gradients[:-1]]
        slot = R.slots(pairs.image, len(encoding.images))
        largest = max(activation[0].numel() for activation in encoding.output.activations)
        room = self._room(2 * 4 * self._elements(encoding, 0), 4 * largest, slot.device)
        for group, most in _groups(pairs.image, len(encoding.images), room):
            place = torch.full((len(encoding.images),), -1, device=slot.device).index_copy(
                0, group, torch.arange(len(group), device=slot.device)
            )
            where = place[pairs.image]
            maps, sources = self.classifier.rerun(encoding.output, encoding.images, group)
            step = max(1, room // len(group))
            for start in range(0, most, step):
                rows = ((where >= 0) & (slot >= start) & (slot < start + step)).nonzero().squeeze(1)
                at = (slot[rows] - start, where[rows])
                shape = (min(step, most - start), len(group))
                tables = [_scattered(gradient[rows], at, shape) for gradient in pooled_gradients]
                for stage, gradient in enumerate(R.total_weights(maps, sources[:-1], tables)):
                    raw = gradient.float().flatten(0, 1)
                    pooled = R.pool(self.classifier.as_map(stage, raw, encoding.output.activations[stage]))
                    weights[stage][rows] = pooled.unflatten(0, shape)[at]  # type: ignore[no-untyped-call]
        return weights

    def _before_norm(self, encoding: Encoding, pairs: ConceptPairs, stage: int, weights: Tensor) -> Tensor:
        """Weights taken before the final LayerNorm where the map is taken after it (published rule for ViT)."""
        before = encoding.output.context[stage].before_norm
        if before is None:
            return weights
        parts = [weights[:0]]
        each = 4 * before[0].numel()
        for chunk in self._chunks(len(pairs), 4 * each, each, before.device):
            maps = before[pairs.image[chunk]].float()
            gradient = weights[chunk, :, None, None].expand_as(maps)
            parts.append(R.pool(self.classifier.through_norm(stage, gradient, maps)))
        return torch.cat(parts)

    def _elements(self, encoding: Encoding, stage: int) -> int:
        """Numbers that the classifier computes after a stage for one of these images (the probe's, scaled by area)."""
        height, width = encoding.images.shape[-2:]
        probe = self.classifier.input_size[0] * self.classifier.input_size[1]
        return int(self.classifier.stages[stage].elements * max(height * width / probe, 1e-3)) + 1

    def _room(self, bytes_each: int, largest: int, device: torch.device) -> int:
        """Pairs that are worked on at once: they keep to the memory limit, and no buffer of theirs to slow memory.

        Args:
            bytes_each: that one pair takes at a time.
            largest: bytes of its largest buffer.
            device: where.
        """
        room = self.memory_limit * 2**20 / bytes_each
        return max(1, int(min(room, CPU_BUFFER / largest) if device.type == "cpu" else room))

    def _chunks(self, total: int, bytes_each: int, largest: int, device: torch.device) -> Iterator[slice]:
        """Slices of pairs, as many as there is room for."""
        size = self._room(bytes_each, largest, device)
        return (slice(start, min(start + size, total)) for start in range(0, total, size))

    @torch.no_grad()
    def association(
        self,
        images: Tensor | Encoding,
        pairs: ConceptPairs,
        num_channels: int = 20,
        regions: Regions | None = None,
    ) -> Tensor:
        """How much each stage matters to each concept's score (section 3.3): (P, L), double.

        The ``num_channels`` channels of largest signed importance are replaced by the mean of z over the stage's
        channels, one after another; the value is the area under the relative decrease of the score.

        Args:
            images: (B, 3, H, W), or their encoding.
            pairs: P pairs.
            num_channels: K; a stage with fewer channels masks all of them.
            regions: of the same pairs, if they are known; else they are computed with the total derivative.

        Raises:
            ValueError: for ``num_channels`` below 1.
        """
        encoding = self._encoded(images)
        pairs = pairs.to(encoding.embedding.device)
        regions = self.regions(encoding, pairs) if regions is None else regions
        found = encoding.embedding.new_zeros(len(pairs), len(regions.maps), dtype=torch.double)
        with _single_precision(encoding.images):
            first = self.translator.first_layer(encoding.pooled)
            logs = R.log_probability(encoding.similarity, self.concepts.probability)
            as_it_is = logs[pairs.image, pairs.concept].unsqueeze(1)
            for stage, importance in enumerate(regions.importance):
                columns, leading = self.translator.columns(stage), self._leading(importance, num_channels)
                each = leading.shape[1] * 4 * max(first.shape[1], len(self.concepts))
                for chunk in self._chunks(len(pairs), 4 * each, each, first.device):
                    image, concept = pairs.image[chunk], pairs.concept[chunk]
                    channels = leading[chunk]
                    z = encoding.pooled[stage][image]
                    change = z.mean(dim=1, keepdim=True) - z.gather(1, channels)
                    scores = self._similarity(self.translator.masked(first[image], columns, channels, change))
                    logs = R.log_probability(scores, self.concepts.probability, concept)
                    found[chunk, stage] = impact(torch.cat([as_it_is[chunk], logs], dim=1)).value
        return found

    def _leading(self, importance: Tensor, num_channels: int) -> Tensor:
        return leading_channels(importance, masked_count(num_channels, self.channel_share, importance.shape[1]))

    @torch.no_grad()
    def contribution(
        self,
        images: Tensor | Encoding,
        pairs: ConceptPairs,
        target: int | Tensor | None = None,
        num_channels: int = 20,
        stage: Tensor | None = None,
        regions: Regions | None = None,
    ) -> Contribution:
        """How far the class probability falls while a concept's channels are masked in the classifier (section 3.4).

        Args:
            images: (B, 3, H, W), or their encoding.
            pairs: P pairs.
            target: the class, one for all or (B,); ``None``: each image's most probable one.
            num_channels: K.
            stage: where to mask, (P,); ``None``: the stage of largest association.
            regions: of the same pairs, if they are known.

        Returns:
            Values, curves and the stages that were masked; a positive value: the concept speaks for the class.

        Raises:
            ValueError: where a stage is not there or not a cut of the network, or ``num_channels`` is below 1.
        """
        encoding = self._encoded(images)
        pairs = pairs.to(encoding.embedding.device)
        regions = self.regions(encoding, pairs) if regions is None else regions
        if stage is None:
            stage = self.association(encoding, pairs, num_channels, regions).argmax(dim=1)
        stage = stage.to(encoding.embedding.device)
        if stage.shape != pairs.image.shape:
            raise ValueError(f"`stage` needs one entry per pair, ({len(pairs)},), got {tuple(stage.shape)}.")
        _check_range("stage", stage, len(regions.maps))
        logits = encoding.output.logits
        classes = (
            logits.argmax(dim=1)
            if target is None
            else torch.as_tensor(target, device=logits.device).expand(len(logits))
        )
        curve = logits.new_zeros(len(pairs), num_channels + 1, dtype=torch.double)
        value = logits.new_zeros(len(pairs), dtype=torch.double)
        for index, importance in enumerate(regions.importance):
            rows = (stage == index).nonzero().squeeze(1)
            if len(rows):
                image = pairs.image[rows]
                result = self._stage_contribution(encoding, index, importance[rows], image, classes, num_channels)
                value[rows] = result.value
                # A stage with fewer than K channels reaches the end of its curve early and stays there.
                curve[rows] = torch.nn.functional.pad(
                    result.curve.unsqueeze(1), (0, curve.shape[1] - result.curve.shape[1]), mode="replicate"
                ).squeeze(1)
        return Contribution(value, curve, stage)

    def _stage_contribution(
        self, encoding: Encoding, stage: int, importance: Tensor, image: Tensor, classes: Tensor, num_channels: int
    ) -> Impact:
        channels = self._leading(importance, num_channels)
        pairs, count = channels.shape
        z = encoding.pooled[stage][image]
        if self.preset == "paper" or stage == len(self.classifier.stages) - 1:
            replacement = z.mean(dim=1, keepdim=True).expand(-1, count)  # m^l: all channels, all positions
        else:
            replacement = z.gather(1, channels)  # published program: the channel's own spatial mean
        how = masking(channels, replacement, z.shape[1])
        # What is run: every image once as it is, for all of its pairs, and every pair with 1 .. K channels masked.
        images, of_image = torch.unique(image, return_inverse=True)
        every = torch.arange(pairs, device=image.device)
        pair = torch.cat([torch.zeros_like(images).scatter(0, of_image, every), every.repeat_interleave(count)])
        steps = torch.cat([torch.zeros_like(images), torch.arange(1, count + 1, device=image.device).repeat(pairs)])
        size = encoding.output.activations[stage][0].numel()
        each = 4 * (self._elements(encoding, stage) + size)
        logs = torch.cat(
            [
                self._masked_log_probability(
                    encoding, stage, image[pair[c]], Masking(*(m[pair[c]] for m in how)), steps[c], classes
                )
                for c in self._chunks(len(pair), each, 4 * size, image.device)
            ]
        )
        as_it_is = logs[: len(images)][of_image].unsqueeze(1)
        return impact(torch.cat([as_it_is, logs[len(images) :].view(pairs, count)], dim=1))

    def _masked_log_probability(
        self, encoding: Encoding, stage: int, image: Tensor, how: Masking, steps: Tensor, classes: Tensor
    ) -> Tensor:
        """Logarithm of each image's class probability while channels of a stage are masked: (V,), double."""
        activation = masked(encoding.output.activations[stage][image], how, steps)
        context = [StageContext() for _ in self.classifier.stages]
        prefix = encoding.output.context[stage].prefix
        if prefix is not None:  # a masked channel is masked in ALL tokens, else the last block would have no effect
            context[stage] = StageContext(masked(prefix[image].float(), how, steps))
        with _single_precision(encoding.images):
            logits = self.classifier.resume(stage, activation, context)
        return logits.double().log_softmax(dim=-1).gather(1, classes[image].unsqueeze(1)).squeeze(1)

    @torch.no_grad()
    def explain(
        self, images: Tensor, top_k: int = 8, num_channels: int = 20, derivative: Derivative = "total"
    ) -> list[Explanation]:
        """Explain each image's most probable class by its ``top_k`` best-scoring concepts.

        Args:
            images: (B, 3, H, W).
            top_k: concepts per image.
            num_channels: K of association and contribution.
            derivative: of the regions.

        Returns:
            One explanation per image; contributions are ``None`` where a stage is not a cut of the classifier.
        """
        encoding = self.encode(images)
        scores = self.scores(encoding)
        best = scores.topk(min(top_k, scores.shape[1]), dim=1)
        image = torch.arange(len(images), device=images.device).repeat_interleave(best.indices.shape[1])
        pairs = ConceptPairs(image, best.indices.flatten())
        regions = self.regions(encoding, pairs, derivative)
        association = self.association(encoding, pairs, num_channels, regions)
        contribution = None
        if all(stage.resumable for stage in self.classifier.stages):
            contribution = self.contribution(
                encoding, pairs, None, num_channels, association.argmax(dim=1), regions
            ).value.tolist()
        probability, target = encoding.output.logits.softmax(dim=1).max(dim=1)
        names = self.classifier.class_names
        results = []
        for index, (c, p) in enumerate(zip(target.tolist(), probability.tolist(), strict=True)):
            rows = (pairs.image == index).nonzero().squeeze(1).tolist()
            parts = [self._explained(pairs, row, scores, encoding, regions, association, contribution) for row in rows]
            parts.sort(key=lambda part: -abs(part.contribution or 0))
            results.append(Explanation(c, names[c] if names else str(c), p, parts))
        return results

    def _explained(
        self,
        pairs: ConceptPairs,
        row: int,
        scores: Tensor,
        encoding: Encoding,
        regions: Regions,
        association: Tensor,
        contribution: list[float] | None,
    ) -> ConceptExplanation:
        image, concept = int(pairs.image[row]), int(pairs.concept[row])
        stage = int(association[row].argmax())
        return ConceptExplanation(
            concept=self.concepts.concepts[concept],
            score=float(scores[image, concept]),
            similarity=float(encoding.similarity[image, concept]),
            stage=stage,
            association=association[row].tolist(),
            region=regions.maps[stage][row],
            contribution=contribution[row] if contribution else None,
        )


def _check_range(what: str, index: Tensor, count: int) -> None:
    """Refuse an index that would count from the end, or point to nothing.

    Raises:
        ValueError: with the first such index.
    """
    wrong = index[(index < 0) | (index >= count)]
    if len(wrong):
        raise ValueError(f"There is no {what} {int(wrong[0])}: there are {count}, counted from 0.")


def _groups(image: Tensor, num_images: int, room: int) -> Iterator[tuple[Tensor, int]]:
    """Images that have about as many pairs each, with the largest number: a group is worked on as a full rectangle.

    Args:
        image: index of every pair's image (P,).
        num_images: B.
        room: pairs that a group may have, if it has more than one image.
    """
    counts = torch.bincount(image, minlength=num_images)
    order = counts.argsort(descending=True, stable=True)
    number = counts[order].tolist()
    start = 0
    while start < num_images and number[start]:
        stop = start + 1
        while (
            stop < num_images and 4 * number[stop] >= 3 * number[start] and (stop + 1 - start) * number[start] <= room
        ):
            stop += 1
        yield order[start:stop], number[start]
        start = stop


def _scattered(values: Tensor, at: tuple[Tensor, Tensor], shape: tuple[int, int]) -> Tensor:
    """Rows (R, C) at their places in a table (S, B, C) of zeros."""
    table = values.new_zeros(*shape, values.shape[1])
    table[at] = values
    return table
