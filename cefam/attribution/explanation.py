"""Putting an explanation together: which concepts, their regions, their contributions, and what the reader should know."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from cefam.attribution.encoding import Encoding, check_images
from cefam.attribution.scores import log_probability, similarity
from cefam.attribution.types import Fused, Images, Picture, Regions
from cefam.concepts import FEW
from cefam.errors import CefamError
from cefam.explanations import ConceptExplanation, Explanation, Photograph
from cefam.explanations.photograph import stacked
from cefam.pairs import ConceptPairs
from cefam.settings import MethodSettings
from cefam.towers.vlm import encode_images

if TYPE_CHECKING:
    from cefam.attribution.explainer import Explainer

CLASSES = 5  # most probable classes that an explanation names


def explain(
    explainer: "Explainer",
    images: Images,
    top_k: int,
    target: int | Tensor | None,
    candidates: Sequence[int] | None,
    settings: MethodSettings,
    every_stage: bool,
    fused: Fused | None = None,
) -> list[Explanation]:
    """The explanations of a batch; :meth:`cefam.attribution.explainer.Explainer.explain`."""
    photographs, views = _given(images, explainer)
    if not photographs:
        return []
    classifier, encoding = explainer.classifier, explainer.encode(views)
    scores = explainer.scores(encoding)
    best = _best(scores, top_k, candidates)
    count = best.shape[1]
    pairs = ConceptPairs(torch.arange(len(best), device=best.device).repeat_interleave(count), best.flatten())
    regions = explainer.regions(encoding, pairs, settings.derivative)
    associations = explainer.association(encoding, pairs, settings.num_channels, regions)
    stage = associations.argmax(dim=1)
    probabilities = classifier.probabilities(encoding.output.logits)
    predicted = probabilities.argmax(dim=1)
    targets = predicted if target is None else explainer.classes(encoding, target)
    effects = _effects(explainer, encoding, pairs, targets, settings, regions, stage, every_stage)
    teacher, baseline = _teacher(explainer, views, best), encoding.similarity.mean(dim=1).tolist()
    parts = []
    # Everything comes to the host at once, not number by number.
    score, similar = (each.gather(1, best).flatten().tolist() for each in (scores, encoding.similarity))
    maps = [each.cpu() for each in _with_fused(regions.maps, fused, encoding, pairs)]
    chosen, association = stage.tolist(), associations.tolist()
    for row, (image, index) in enumerate(zip(pairs.image.tolist(), pairs.concept.tolist(), strict=True)):
        concept = explainer.concepts.concepts[index]
        parts.append(ConceptExplanation(
            concept=concept,
            score=score[row],
            similarity=similar[row],
            stage=chosen[row],
            association=association[row],
            maps=[each[row] for each in maps],
            photograph=photographs[image],
            present=similar[row] >= baseline[image],
            distrust=explainer.doubts.get(concept.number, ""),
            **effects[row],
            **teacher[row],
        ))  # fmt: skip
    known, classes = probabilities.cpu(), targets.tolist()
    about = {**settings.to_dict(), "concepts": len(explainer.concepts), "top_k": top_k}
    return [
        _of_image(
            explainer,
            photograph,
            parts[image * count : (image + 1) * count],
            known[image],
            classes[image],
            {"baseline": baseline[image], "settings": about},
        )
        for image, photograph in enumerate(photographs)
    ]


def _of_image(
    explainer: "Explainer",
    photograph: Photograph,
    parts: list[ConceptExplanation],
    probabilities: Tensor,
    target: int,
    about: dict[str, Any],
) -> Explanation:
    """The explanation of one image from its concepts and class probabilities (classes,)."""
    name = explainer.classifier.class_name
    leading = probabilities.topk(min(CLASSES, len(probabilities)))
    predicted = int(leading.indices[0])
    return Explanation(
        target=target,
        target_name=name(target),
        probability=float(probabilities[target]),
        concepts=sorted(parts, key=lambda part: (-abs(part.contribution or 0.0), -part.score)),
        photograph=photograph,
        predicted=predicted,
        predicted_name=name(predicted),
        classes=[(name(c), p) for c, p in zip(leading.indices.tolist(), leading.values.tolist(), strict=True)],
        stages=explainer.classifier.stage_names,
        warnings=_warnings(explainer, parts),
        **about,
    )


def _with_fused(maps: list[Tensor], fused: Fused | None, encoding: Encoding, pairs: ConceptPairs) -> list[Tensor]:
    """The stages' maps and, where wanted, that of all stages together (P, h, w), as bright as its concept is present.

    Its highest density is what S is above the mean over concepts, at least 1. A gradient's size does not say it: it is small where the
    translator is saturated, and so for what is seen best.
    """
    if fused is None:
        return maps
    together, similarity = fused(encoding, pairs), encoding.similarity
    above = (similarity - similarity.mean(dim=1, keepdim=True))[pairs.image, pairs.concept].clamp_min(1)
    highest = together.amax(dim=(1, 2)).clamp_min(1e-30) * together[0].numel()
    return [*maps, together * (above / highest).view(-1, 1, 1)]


def _given(images: Images, explainer: "Explainer") -> tuple[list[Photograph], Tensor]:
    """Photographs, and their views on the device of the classifier.

    Raises:
        CefamError: for images of another kind.
    """
    where = next((value.device for value in explainer.translator.parameters()), torch.device("cpu"))
    if isinstance(images, Tensor):
        if images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] != 3 == images.shape[3]:
            images = images.permute(0, 3, 1, 2)
        check_images(images, explainer.classifier)
        return [Photograph.of_view(view, f"image {index}") for index, view in enumerate(images)], images.to(where)
    each = [images] if isinstance(images, Picture) else list(images)
    photographs = [to_photograph(image, explainer, f"image {index}") for index, image in enumerate(each)]
    return photographs, stacked(photographs).to(where) if photographs else torch.empty(0, device=where)


def to_photograph(image: Picture, explainer: "Explainer", name: str) -> Photograph:
    """A picture or file as a photograph with the usual view for the classifier; a photograph as it is.

    Raises:
        CefamError: for something else, or where the classifier does not take squares.
    """
    if isinstance(image, Photograph):
        return image
    if not isinstance(image, Picture):
        raise CefamError(
            f"Images must be a tensor (B, 3, H, W), or photographs, PIL images and paths, got a {type(image).__name__}."
        )
    height, width = explainer.classifier.input_size
    if height != width:
        raise CefamError(
            f"The classifier takes images of {height} x {width}, and pictures are cut to squares: pass a tensor, or photographs with a "
            f"view of your own (`Photograph.open(path, view)`)."
        )
    return Photograph.of(image, height, name) if isinstance(image, Image.Image) else Photograph.open(image, height)


def _best(scores: Tensor, top_k: int, candidates: Sequence[int] | None) -> Tensor:
    """Indices of the best-scoring concepts (B, k), among some or all."""
    if top_k < 1:
        raise CefamError(f"top_k must be at least 1, got {top_k}.")
    if candidates is None:
        return scores.topk(min(top_k, scores.shape[1]), dim=1).indices
    if not candidates:
        raise CefamError("No concept was given to explain: name at least one, or leave `concepts` out.")
    among = torch.tensor(candidates).to(scores.device)
    return among[scores[:, among].topk(min(top_k, len(candidates)), dim=1).indices]


def _effects(
    explainer: "Explainer",
    encoding: Encoding,
    pairs: ConceptPairs,
    targets: Tensor,
    settings: MethodSettings,
    regions: Regions,
    stage: Tensor,
    every_stage: bool,
) -> list[dict[str, Any]]:
    """Direct effect, contribution and curve at the chosen stage of every pair, and, if wanted, contributions at all stages."""
    found_direct = explainer.direct_effect(encoding, pairs, targets, regions).tolist()
    direct = [None if math.isnan(value) else value for value in found_direct]
    stages = explainer.classifier.stages
    if not all(each.resumable for each in stages):
        return [{"contribution": None, "curve": [], "direct": value} for value in direct]
    masked = [stage] if not every_stage else [torch.full_like(stage, index) for index in range(len(stages))]
    found = [explainer.contribution(encoding, pairs, targets, settings.num_channels, each, regions) for each in masked]
    values = [of_stage.value.tolist() for of_stage in found]
    curves = [of_stage.curve.tolist() for of_stage in found]
    rows = []
    for row, chosen in enumerate(stage.tolist()):
        here = chosen if every_stage else 0
        each = [of_stage[row] for of_stage in values] if every_stage else None
        rows.append(
            {
                "contribution": values[here][row],
                "curve": curves[here][row],
                "contributions": each,
                "direct": direct[row],
            }
        )
    return rows


def _teacher(explainer: "Explainer", views: Tensor, best: Tensor) -> list[dict[str, Any]]:
    """What the VLM itself says of the explained concepts (B, k) of the views, a row per pair; nothing where it is not at hand."""
    if explainer.vlm is None:
        return [{}] * best.numel()
    concepts = explainer.concepts
    embedding = encode_images(explainer.vlm, views).float()
    text = concepts.require_embeddings().to(embedding)
    similar = similarity(embedding, text, concepts.logit_scale, concepts.logit_bias)
    score = log_probability(similar, concepts.probability).exp()
    said = (each.gather(1, best).flatten().tolist() for each in (similar, score))
    return [{"vlm_similarity": s, "vlm_score": p} for s, p in zip(*said, strict=True)]


def _warnings(explainer: "Explainer", parts: Sequence[ConceptExplanation]) -> list[str]:
    """What the reader of an explanation should know, in sentences."""
    found = []
    count = len(explainer.concepts)
    if explainer.concepts.probability == "softmax" and count < FEW:
        found.append(f"Only {count} concepts compete: their probabilities say little.")
    passed = [stage.name for stage in explainer.classifier.stages if not stage.resumable]
    if passed:
        found.append(
            f"Something by-passes {', '.join(passed)}: contributions cannot be computed, concepts are sorted by score."
        )
    doubtful = [part.concept.word for part in parts if part.distrust]
    if doubtful:
        found.append(f"Not to be trusted here, says `cefam doctor`: {', '.join(doubtful)}.")
    if parts and not any(part.present for part in parts):
        found.append(
            "All of these concepts are less similar to the image than the average one: they are called absent."
        )
    return found
