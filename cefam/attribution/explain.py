"""Assembly of explanations: selected concepts, their regions and contributions, and warnings for the reader."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cefam.attribution.candidates import check_range
from cefam.attribution.competition import standardized
from cefam.attribution.direct import direct_effect
from cefam.attribution.encoding import Encoding, Networks, check_images
from cefam.attribution.fused import FusedMaps
from cefam.attribution.impact import association, contribution
from cefam.attribution.scores import log_probability, similarity
from cefam.attribution.types import Activated, Images, Picture, Regions
from cefam.attribution.weights import regions_of
from cefam.concepts.sets import FEW
from cefam.errors import CefamError
from cefam.explanations import ConceptExplanation, Explanation, Photograph
from cefam.explanations.photograph import stacked
from cefam.pairs import ConceptPairs
from cefam.settings import MethodSettings
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.vlm import VisionLanguageModel, encode_images

ALIKE = 0.9  # correlation of two regions above which their concepts share an entry
POOL = 3  # times as many concepts as shown are looked at, to leave out those that share a region
CLASSES = 5  # number of most probable classes listed in an explanation


@dataclass(frozen=True)
class ExplainOptions:
    """Options of :func:`explain`.

    ``top_k``: number of concepts per image; ``candidates``: indices of the concepts that may be explained, ``None``: all;
    ``every_stage``: compute contributions at every stage; ``fused``: computes one map over all stages; ``vlm``: adds the VLM's
    own scores; ``doubts``: reasons not to trust concepts, by concept number.
    """

    settings: MethodSettings
    top_k: int = 8
    candidates: Sequence[int] | None = None
    every_stage: bool = False
    fused: FusedMaps | None = None
    vlm: VisionLanguageModel | None = None
    doubts: Mapping[int, str] = field(default_factory=dict)


def explain(
    networks: Networks, images: Images, target: int | Tensor | None, options: ExplainOptions
) -> list[Explanation]:
    """Explain a batch of images; see :meth:`cefam.attribution.explainer.Explainer.explain`."""
    photographs, views = _given(images, networks)
    if not photographs:
        return []
    classifier, encoding, settings = networks.classifier, networks.encode(views), options.settings
    scores = log_probability(encoding.similarity, networks.concepts.probability).exp()
    activated, fused = Activated(encoding.images, encoding.output), options.fused
    evidence = encoding.similarity if fused is None else fused.evidence(activated, encoding.similarity)
    best, alike = _chosen(networks, activated, evidence, options)
    count = best.shape[1]
    pairs = ConceptPairs(torch.arange(len(best), device=best.device).repeat_interleave(count), best.flatten())
    regions = regions_of(networks, encoding, pairs, settings)
    associations = association(networks, encoding, pairs, regions.importance, settings)
    stage = associations.argmax(dim=1)
    probabilities = classifier.probabilities(encoding.output.logits)
    targets = classes_of(classifier, encoding, target)
    effects = _effects(networks, encoding, pairs, targets, regions, stage, options)
    teacher, baseline = _teacher(networks, options.vlm, views, best), evidence.mean(dim=1).tolist()
    parts = []
    # Copy whole tensors to the host, not single values.
    score, similar, told = (each.gather(1, best).flatten().tolist() for each in (scores, encoding.similarity, evidence))
    maps = [each.cpu() for each in _with_fused(regions.maps, fused, activated, evidence, pairs)]
    chosen, of_stages = stage.tolist(), associations.tolist()
    for row, (image, index) in enumerate(zip(pairs.image.tolist(), pairs.concept.tolist(), strict=True)):
        concept = networks.concepts.concepts[index]
        parts.append(ConceptExplanation(
            concept=concept,
            score=score[row],
            similarity=similar[row],
            stage=chosen[row],
            association=of_stages[row],
            maps=[each[row] for each in maps],
            photograph=photographs[image],
            evidence=told[row],
            present=told[row] >= baseline[image],
            alike=[networks.concepts.words[other] for other in alike[image].get(index, [])],
            distrust=options.doubts.get(concept.number, ""),
            **effects[row],
            **teacher[row],
        ))  # fmt: skip
    known, classes = probabilities.cpu(), targets.tolist()
    about = {**settings.to_dict(), "concepts": len(networks.concepts), "top_k": options.top_k}
    return [
        _of_image(
            networks,
            photograph,
            parts[image * count : (image + 1) * count],
            known[image],
            classes[image],
            {"baseline": baseline[image], "settings": about},
        )
        for image, photograph in enumerate(photographs)
    ]


def classes_of(classifier: FrozenClassifier, encoding: Encoding, target: int | Tensor | None) -> Tensor:
    """Class of each image (B,): ``target``, or the most probable class."""
    if target is None:
        return classifier.probabilities(encoding.output.logits).argmax(dim=1)
    target = torch.as_tensor(target).long()
    check_range("class", target.reshape(-1).cpu(), classifier.num_classes)
    return target.to(encoding.device).expand(len(encoding.images))


def _of_image(
    networks: Networks,
    photograph: Photograph,
    parts: list[ConceptExplanation],
    probabilities: Tensor,
    target: int,
    about: dict[str, Any],
) -> Explanation:
    """Build the explanation of one image from its concepts and class probabilities (classes,)."""
    name = networks.classifier.class_name
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
        stages=networks.classifier.stage_names,
        warnings=_warnings(networks, parts),
        **about,
    )


def _with_fused(
    maps: list[Tensor], fused: FusedMaps | None, activated: Activated, evidence: Tensor, pairs: ConceptPairs
) -> list[Tensor]:
    """The stages' maps, followed by the fused map (P, h, w) if ``fused`` is given.

    The fused map is scaled so that its maximum times its number of pixels is the evidence minus its mean over concepts, at
    least 1. (The gradient's magnitude does not measure presence: it is small where the translator saturates.)
    """
    if fused is None:
        return maps
    together = fused(activated, pairs)
    above = (evidence - evidence.mean(dim=1, keepdim=True))[pairs.image, pairs.concept].clamp_min(1)
    highest = together.amax(dim=(1, 2)).clamp_min(1e-30) * together[0].numel()
    return [*maps, together * (above / highest).view(-1, 1, 1)]


def _chosen(
    networks: Networks, activated: Activated, evidence: Tensor, options: ExplainOptions
) -> tuple[Tensor, list[dict[int, list[int]]]]:
    """The concepts to explain in each image (B, k), and per image the concepts that share an entry with one of them."""
    candidates = networks.concepts.shown if options.candidates is None else options.candidates
    best = _best(evidence, options.top_k, candidates)
    if options.fused is None or best.shape[1] == len(candidates):
        return best, [{} for _ in best]
    return _distinct(options.fused, activated, _best(evidence, POOL * options.top_k, candidates), best.shape[1])


def _distinct(
    fused: FusedMaps, activated: Activated, pool: Tensor, count: int
) -> tuple[Tensor, list[dict[int, list[int]]]]:
    """Choose the first ``count`` concepts of each image; a concept with the map of a better one of its category is left out.

    Returns:
        Concepts (B, count), and per image the concepts left out by the concept that they are like.
    """
    images, n = pool.shape
    pairs = ConceptPairs(torch.arange(images, device=pool.device).repeat_interleave(n), pool.flatten())
    maps = F.normalize(standardized(fused(activated, pairs)).flatten(1), dim=1).view(images, n, -1)
    group = fused.group.to(pool.device)[pool]
    together = ((maps @ maps.transpose(1, 2) > ALIKE) & (group.unsqueeze(1) == group.unsqueeze(2))).cpu()
    best, alike = [], []
    for concepts, same in zip(pool.tolist(), together, strict=True):
        chosen: list[int] = []
        shared: dict[int, list[int]] = {}
        left = []
        for place in range(n):
            first = next((other for other in chosen if same[place, other]), None)
            if first is not None:
                left.append(place)
                shared.setdefault(concepts[first], []).append(concepts[place])
            elif len(chosen) < count:
                chosen.append(place)
        filled = [*chosen, *left][:count]  # every image has the same number
        best.append([concepts[place] for place in filled])
        alike.append({key: [c for c in others if c not in best[-1]] for key, others in shared.items()})
    return torch.tensor(best, device=pool.device), alike


def _given(images: Images, networks: Networks) -> tuple[list[Photograph], Tensor]:
    """Photographs, and their views on the networks' device."""
    where = networks.device
    if isinstance(images, Tensor):
        if images.dtype == torch.uint8 and images.dim() == 4 and images.shape[1] != 3 == images.shape[3]:
            images = images.permute(0, 3, 1, 2)
        check_images(images, networks.classifier)
        return [Photograph.of_view(view, f"image {index}") for index, view in enumerate(images)], images.to(where)
    each = [images] if isinstance(images, Picture) else list(images)
    photographs = [to_photograph(image, networks.classifier, f"image {index}") for index, image in enumerate(each)]
    return photographs, stacked(photographs).to(where) if photographs else torch.empty(0, device=where)


def to_photograph(image: Picture, classifier: FrozenClassifier, name: str) -> Photograph:
    """Convert a picture or file to a photograph with the classifier's default view; a photograph is returned unchanged."""
    if isinstance(image, Photograph):
        return image
    if not isinstance(image, Picture):
        raise CefamError(
            f"Images must be a tensor (B, 3, H, W), or photographs, PIL images and paths, got a {type(image).__name__}."
        )
    height, width = classifier.input_size
    if height != width:
        raise CefamError(
            f"The classifier takes images of {height} x {width}, and pictures are cut to squares: pass a tensor, or photographs with a "
            f"view of your own (`Photograph.open(path, view)`)."
        )
    return Photograph.of(image, height, name) if isinstance(image, Image.Image) else Photograph.open(image, height)


def _best(scores: Tensor, top_k: int, candidates: Sequence[int]) -> Tensor:
    """Indices of the best-scoring concepts (B, k) among ``candidates``."""
    if top_k < 1:
        raise CefamError(f"top_k must be at least 1, got {top_k}.")
    if not candidates:
        raise CefamError("No concept was given to explain: name at least one, or leave `concepts` out.")
    among = torch.tensor(candidates).to(scores.device)
    return among[scores[:, among].topk(min(top_k, len(candidates)), dim=1).indices]


def _effects(
    networks: Networks,
    encoding: Encoding,
    pairs: ConceptPairs,
    targets: Tensor,
    regions: Regions,
    stage: Tensor,
    options: ExplainOptions,
) -> list[dict[str, Any]]:
    """Direct effect, contribution and curve at the chosen stage of every pair; optionally contributions at all stages."""
    every_stage, importance = options.every_stage, regions.importance
    found_direct = direct_effect(networks.classifier, encoding, pairs, importance[-1], targets).tolist()
    direct = [None if math.isnan(value) else value for value in found_direct]
    stages = networks.classifier.stages
    if not all(each.resumable for each in stages):
        return [{"contribution": None, "curve": [], "direct": value} for value in direct]
    masked = [stage] if not every_stage else [torch.full_like(stage, index) for index in range(len(stages))]
    found = [contribution(networks, encoding, pairs, importance, each, targets, options.settings) for each in masked]
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


def _teacher(networks: Networks, vlm: VisionLanguageModel | None, views: Tensor, best: Tensor) -> list[dict[str, Any]]:
    """The VLM's own similarity and score of the explained concepts (B, k), a dict per pair; empty dicts without a VLM."""
    if vlm is None:
        return [{}] * best.numel()
    concepts = networks.concepts
    embedding = encode_images(vlm, views).float()
    text = concepts.require_embeddings().to(embedding)
    similar = similarity(embedding, text, concepts.logit_scale, concepts.logit_bias)
    score = log_probability(similar, concepts.probability).exp()
    said = (each.gather(1, best).flatten().tolist() for each in (similar, score))
    return [{"vlm_similarity": s, "vlm_score": p} for s, p in zip(*said, strict=True)]


def _warnings(networks: Networks, parts: Sequence[ConceptExplanation]) -> list[str]:
    """Warnings for the reader of an explanation."""
    found = []
    count = len(networks.concepts)
    if networks.concepts.probability == "softmax" and count < FEW:
        found.append(f"Only {count} concepts compete: their probabilities say little.")
    passed = [stage.name for stage in networks.classifier.stages if not stage.resumable]
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
