"""Rules that estimate how much a concept contributes to a class: one value and one map per (image, concept) pair."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cefam.attribution.direct import last_stage_gradient, log_odds_of
from cefam.attribution.explainer import Explainer
from cefam.images.views import resize_regions
from cefam.interventions.effects import log_odds
from cefam.methods import Activated, WWWRegions
from cefam.pairs import ConceptPairs
from cefam.translator import Translator

TOP = 0.05  # share of the picture that is filled by rules that fill a region
FILLS = 5  # number of fill colors


@dataclass(frozen=True)
class RuleInputs:
    """Inputs of a rule for one scene: ``image`` (3, H, W), ``target`` class, P ``concepts`` by index, and their true ``masks``
    (P, H, W), which only references use (all False if unknown).
    """  # noqa: D205

    image: Tensor
    target: int
    concepts: Tensor
    masks: Tensor


Answer = tuple[Tensor, Tensor]  # values (P,), and maps (P, h, w) that are not negative
Rule = Callable[[Explainer, RuleInputs], Answer]


def _pairs(inputs: RuleInputs) -> tuple[Tensor, ConceptPairs]:
    return inputs.image.unsqueeze(0), ConceptPairs(torch.zeros_like(inputs.concepts), inputs.concepts)


def contribution(stage: int | None = None, preset: str = "published", derivative: str = "total") -> Rule:
    """CE-FAM's contribution (section 3.4), at the stage of largest association or at a given stage."""

    def rule(explainer: Explainer, inputs: RuleInputs) -> Answer:
        settings = explainer.settings.changed(preset=preset, derivative=derivative)  # type: ignore[arg-type]
        same = Explainer(explainer.classifier, explainer.translator, explainer.concepts, None, settings)
        images, pairs = _pairs(inputs)
        encoding = same.encode(images)
        regions = same.regions(encoding, pairs)
        where = None if stage is None else torch.full_like(inputs.concepts, stage)
        found = same.contribution(encoding, pairs, inputs.target, stage=where, regions=regions)
        return found.value, _chosen(regions.maps, found.stage, images.shape[-2:])

    return rule


def _chosen(maps: list[Tensor], stage: Tensor, size: torch.Size) -> Tensor:
    """The map of each pair's stage at the size of the picture (P, H, W)."""
    every = torch.stack([resize_regions(each, size) for each in maps])
    return every[stage, torch.arange(len(stage))]


def _associated(explainer: Explainer, inputs: RuleInputs) -> Tensor:
    """Regions at the stage of largest association (P, H, W)."""
    images, pairs = _pairs(inputs)
    encoding = explainer.encode(images)
    regions = explainer.regions(encoding, pairs)
    stage = explainer.association(encoding, pairs, regions=regions).argmax(dim=1)
    return _chosen(regions.maps, stage, images.shape[-2:])


def score(explainer: Explainer, inputs: RuleInputs) -> Answer:
    """The concept's similarity minus that of the average concept, regardless of the class."""
    found = explainer.encode(inputs.image.unsqueeze(0)).similarity[0]
    return (found - found.mean())[inputs.concepts].double(), _associated(explainer, inputs)


def direct(explainer: Explainer, inputs: RuleInputs) -> Answer:
    """The direct effect: the cosine of the concept's importances with the class's mean gradient, at the last stage."""
    images, pairs = _pairs(inputs)
    encoding = explainer.encode(images)
    regions = explainer.regions(encoding, pairs)
    value = explainer.direct_effect(encoding, pairs, inputs.target, regions)
    return value, resize_regions(regions.maps[-1], images.shape[-2:])


def gradient_activation(explainer: Explainer, inputs: RuleInputs) -> Answer:
    """Gradient x activation of the class at the last stage, averaged over the concept's region."""
    region = _associated(explainer, inputs)
    encoding = explainer.encode(inputs.image.unsqueeze(0))
    score = log_odds_of(explainer.classifier, torch.tensor([inputs.target]))
    gradient = last_stage_gradient(explainer.classifier, encoding.output, encoding.images, score)[0]
    activation = encoding.output.activations[-1][0]
    effect = resize_regions((activation * gradient).sum(dim=0, keepdim=True), region.shape[-2:])[0]
    weight = region / region.sum(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    return (weight * effect).sum(dim=(-2, -1)).double(), region


def region_masked(explainer: Explainer, inputs: RuleInputs) -> Answer:
    """Decrease of the log-odds when the strongest part of the region is filled with other colors in the picture."""
    region = _associated(explainer, inputs)
    count = max(1, int(TOP * region[0].numel()))
    edge = region.flatten(1).topk(count).values[:, -1].view(-1, 1, 1)
    return _filled(explainer, inputs, (region >= edge) & (region > 0)), region


def true_mask(explainer: Explainer, inputs: RuleInputs) -> Answer:
    """Reference: :func:`region_masked` with the concept's true mask, the result of a perfect region."""
    return _filled(explainer, inputs, inputs.masks), inputs.masks.float()


def _filled(explainer: Explainer, inputs: RuleInputs, mask: Tensor) -> Tensor:
    """Log-odds minus their mean (P,) when masks (P, H, W) are filled, each with the same fixed colors."""
    generator = torch.Generator().manual_seed(0)
    mean = inputs.image.float().mean(dim=(-2, -1)).round().byte()
    colors = torch.cat(
        [mean.unsqueeze(0), torch.randint(0, 256, (FILLS - 1, 3), generator=generator, dtype=torch.uint8)]
    )
    before = log_odds(explainer.classifier, inputs.image.unsqueeze(0), inputs.target)
    after = []
    for color in colors:
        views = torch.where(mask.unsqueeze(1), color.view(1, 3, 1, 1), inputs.image)
        after.append(log_odds(explainer.classifier, views, inputs.target))
    return before - torch.stack(after).mean(dim=0)


def www(method: WWWRegions) -> Rule:
    """WWW: sum of the contributions of the last stage's neurons associated with the concept; 0 if there are none."""
    neurons, classifier = method.associations, method.context.classifier  # type: ignore[union-attr]
    last = neurons.stage == len(classifier.stages) - 1
    channel, concept = neurons.channel[last], neurons.concept[last]

    def rule(explainer: Explainer, inputs: RuleInputs) -> Answer:
        images = inputs.image.unsqueeze(0)
        activated = Activated(images, classifier(images))
        each = method.contributions(activated, torch.tensor([inputs.target]))[0].double()
        activation = activated.output.activations[-1][0].float()
        values, maps = [], []
        for index in inputs.concepts.tolist():
            mine = channel[concept == index]
            values.append(each[mine].sum())
            maps.append(activation[mine].clamp_min(0).sum(dim=0))
        return torch.stack(values), resize_regions(torch.stack(maps), images.shape[-2:])

    return rule


def random_concepts(explainer: Explainer, inputs: RuleInputs) -> Answer:
    """Control: the contribution of another concept, drawn at random."""
    count = len(explainer.concepts)
    generator = torch.Generator().manual_seed(int(inputs.concepts.sum()) + inputs.target)
    shift = torch.randint(1, count, (len(inputs.concepts),), generator=generator)
    other = RuleInputs(inputs.image, inputs.target, (inputs.concepts + shift) % count, inputs.masks)
    return contribution()(explainer, other)


def random_translator(explainer: Explainer, inputs: RuleInputs) -> Answer:
    """Control: an untrained translator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mine = explainer.translator
        untrained = Translator(mine.channels, mine.embedding_dim, mine.hidden_dims)
    return contribution()(
        Explainer(explainer.classifier, untrained, explainer.concepts, None, explainer.settings), inputs
    )


def last_stages(explainer: Explainer) -> dict[str, Rule]:
    """A contribution rule for every stage of a classifier."""
    return {
        f"contribution at {name}": contribution(index) for index, name in enumerate(explainer.classifier.stage_names)
    }


RULES: dict[str, Rule] = {
    "contribution (paper's rule)": contribution(),
    "contribution, m^l mask": contribution(preset="paper"),
    "contribution, branch": contribution(derivative="branch"),
    "contribution, branch, m^l mask": contribution(preset="paper", derivative="branch"),
    "score alone": score,
    "direct effect": direct,
    "gradient x activation": gradient_activation,
    "region filled in the picture": region_masked,
}
CONTROLS: dict[str, Rule] = {
    "control: random concepts": random_concepts,
    "control: random translator": random_translator,
}
REFERENCES: dict[str, Rule] = {"reference: true masks filled": true_mask}

__all__ = ["CONTROLS", "REFERENCES", "RULES", "Answer", "Rule", "RuleInputs", "last_stages"]
