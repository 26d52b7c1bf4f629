"""Masking: the decrease of a score while a concept's most important channels are masked one by one (sections 3.3, 3.4).

Of the concept's own score it is the association of a stage; of the class's, the contribution of the concept.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cefam.attribution.batching import chunks, max_pairs
from cefam.attribution.encoding import Encoding, Networks, single_precision
from cefam.attribution.scores import log_probability
from cefam.attribution.types import Contribution
from cefam.pairs import ConceptPairs
from cefam.settings import MethodSettings
from cefam.towers.stages import StageContext


class Impact(NamedTuple):
    """``value`` (P,): area under ``curve``; ``curve`` (P, K + 1): relative decrease after n masked channels. Double."""

    value: Tensor
    curve: Tensor


def leading_channels(importance: Tensor, num_channels: int) -> Tensor:
    """Channels with the largest SIGNED importance beta * z, descending: (P, C) -> (P, min(K, C)).

    Importances are not clipped at 0: if fewer than K are positive, the least negative follow (published program). Ties
    keep the order of the channels.
    """
    return importance.argsort(dim=-1, descending=True, stable=True)[:, : min(num_channels, importance.shape[-1])]


def impact(log_scores: Tensor) -> Impact:
    """Impact of masking: curve n = (s_0 - s_n) / s_0, value = sum_n curve_n / K (as in the published program).

    Args:
        log_scores: logarithm of the score with n = 0 .. K channels masked (P, K + 1); logarithms avoid 0 / 0 for scores
            near zero.

    >>> impact(torch.tensor([[1.0, 0.5, 0.25]], dtype=torch.double).log()).value
    tensor([0.6250], dtype=torch.float64)
    """
    curve = -torch.expm1(log_scores.double() - log_scores[:, :1].double())
    return Impact(curve.sum(dim=-1) / (log_scores.shape[-1] - 1), curve)


def association(
    networks: Networks, encoding: Encoding, pairs: ConceptPairs, importance: Sequence[Tensor], settings: MethodSettings
) -> Tensor:
    """Association of each stage with each concept's score: (P, L), double.

    The K channels with the largest signed importance are replaced one after another by the mean of z over the stage's
    channels, and only the translator is rerun; the association is the area under the curve of the score's relative decrease.
    """
    translator, probability = networks.translator, networks.concepts.probability
    found = encoding.embedding.new_zeros(len(pairs), len(importance), dtype=torch.double)
    with single_precision(encoding.device):
        first = translator.first_layer(encoding.pooled)
        unmasked = log_probability(encoding.similarity, probability)[pairs.image, pairs.concept].unsqueeze(1)
        for stage, of_stage in enumerate(importance):
            leading = leading_channels(of_stage, settings.masked_count(of_stage.shape[1]))
            columns = translator.columns(stage)
            each = leading.shape[1] * 4 * max(first.shape[1], len(networks.concepts))
            for chunk in chunks(len(pairs), max_pairs(settings.memory_limit, 4 * each, each, first.device)):
                image, channels = pairs.image[chunk], leading[chunk]
                z = encoding.pooled[stage][image]
                change = z.mean(dim=1, keepdim=True) - z.gather(1, channels)
                scores = networks.similarity(translator.masked(first[image], columns, channels, change))
                logs = log_probability(scores, probability, pairs.concept[chunk])
                found[chunk, stage] = impact(torch.cat([unmasked[chunk], logs], dim=1)).value
    return found


def contribution(
    networks: Networks,
    encoding: Encoding,
    pairs: ConceptPairs,
    importance: Sequence[Tensor],
    stage: Tensor,
    classes: Tensor,
    settings: MethodSettings,
) -> Contribution:
    """Contributions of P pairs to ``classes`` (B,), with the channels masked at each pair's ``stage`` (P,).

    ``importance`` is beta * z, one (P, C_l) per stage.
    """
    curve = encoding.embedding.new_zeros(len(pairs), settings.num_channels + 1, dtype=torch.double)
    value = curve.new_zeros(len(pairs))
    for index, of_stage in enumerate(importance):
        rows = (stage == index).nonzero().squeeze(1)
        if len(rows):
            found = _at_stage(networks, encoding, index, of_stage[rows], pairs.image[rows], classes, settings)
            value[rows] = found.value
            # With fewer than K channels in the stage, pad the curve with its last value.
            missing = curve.shape[1] - found.curve.shape[1]
            curve[rows] = torch.cat([found.curve, found.curve[:, -1:].expand(-1, missing)], dim=1)
    return Contribution(value, curve, stage)


def _at_stage(
    networks: Networks,
    encoding: Encoding,
    stage: int,
    importance: Tensor,
    image: Tensor,
    classes: Tensor,
    settings: MethodSettings,
) -> Impact:
    """Impact of masking channels of one stage on the class probability, for P pairs."""
    channels = leading_channels(importance, settings.masked_count(importance.shape[1]))
    pairs, count = channels.shape
    z = encoding.pooled[stage][image]
    if settings.preset == "paper" or stage == len(networks.classifier.stages) - 1:
        replacement = z.mean(dim=1, keepdim=True).expand(-1, count)  # m^l: mean over all channels and positions
    else:
        replacement = z.gather(1, channels)  # published program: the channel's own spatial mean
    order = torch.arange(count, device=image.device).expand(pairs, count)
    place = torch.full_like(z, count, dtype=torch.long).scatter(1, channels, order)  # count: never masked
    constant = torch.zeros_like(z).scatter(1, channels, replacement)
    # First one unmasked row per image, shared by its pairs; then one row per pair and number of masked channels 1 .. K.
    images, of_image = torch.unique(image, return_inverse=True)
    every = torch.arange(pairs, device=image.device)
    pair = torch.cat([torch.zeros_like(images).scatter(0, of_image, every), every.repeat_interleave(count)])
    steps = torch.cat([torch.zeros_like(images), torch.arange(1, count + 1, device=image.device).repeat(pairs)])

    def masked(values: Tensor, rows: slice) -> Tensor:
        """Values (V, C, ...) of a stage, with the first ``steps`` channels of each row replaced by constants."""
        shape = (*values.shape[:2], *(1,) * (values.dim() - 2))
        hidden = (place[pair[rows]] < steps[rows].unsqueeze(1)).view(shape)
        return torch.where(hidden, constant[pair[rows]].to(values.dtype).view(shape), values)

    classifier, activation = networks.classifier, encoding.output.activations[stage]
    prefix = encoding.output.context[stage].prefix
    size = activation[0].numel()
    fit = max_pairs(settings.memory_limit, 4 * (networks.elements(encoding, stage) + size), 4 * size, image.device)
    logs = []
    for rows in chunks(len(pair), fit):
        of = image[pair[rows]]
        context = [StageContext() for _ in classifier.stages]
        if prefix is not None:  # also mask prefix tokens: the logits may depend on the class token alone
            context[stage] = StageContext(masked(prefix[of].float(), rows))
        with single_precision(encoding.device):
            logits = classifier.resume(stage, masked(activation[of], rows), context)
        logs.append(classifier.log_probability(logits, classes[of]))
    found = torch.cat(logs)
    unmasked = found[: len(images)][of_image].unsqueeze(1)
    return impact(torch.cat([unmasked, found[len(images) :].view(pairs, count)], dim=1))
