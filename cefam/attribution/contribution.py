"""Contribution of a concept: decrease of the class probability when its channels are masked in the classifier (section 3.4)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cefam.attribution.batching import chunks, max_pairs
from cefam.attribution.encoding import Encoding, Networks, single_precision
from cefam.attribution.impact import Impact, Masking, impact, leading_channels, masked, masking
from cefam.attribution.types import Contribution
from cefam.pairs import ConceptPairs
from cefam.settings import MethodSettings
from cefam.towers.stages import StageContext


def contribution(
    networks: Networks,
    encoding: Encoding,
    pairs: ConceptPairs,
    importance: Sequence[Tensor],
    stage: Tensor,
    classes: Tensor,
    settings: MethodSettings,
) -> Contribution:
    """Contributions of P pairs.

    Args:
        networks: classifier, translator and concepts.
        encoding: encoding of the images.
        pairs: P pairs.
        importance: beta * z, one (P, C_l) per stage.
        stage: stage at which each pair's channels are masked (P,).
        classes: class whose probability is measured, per image (B,).
        settings: K, preset and memory limit.
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
    how = masking(channels, replacement, z.shape[1])
    # First one unmasked row per image, shared by its pairs; then one row per pair and number of masked channels 1 .. K.
    images, of_image = torch.unique(image, return_inverse=True)
    every = torch.arange(pairs, device=image.device)
    pair = torch.cat([torch.zeros_like(images).scatter(0, of_image, every), every.repeat_interleave(count)])
    steps = torch.cat([torch.zeros_like(images), torch.arange(1, count + 1, device=image.device).repeat(pairs)])
    size = encoding.output.activations[stage][0].numel()
    fit = max_pairs(settings.memory_limit, 4 * (networks.elements(encoding, stage) + size), 4 * size, image.device)
    logs = torch.cat(
        [
            _log_probability(
                networks, encoding, stage, image[pair[c]], Masking(*(m[pair[c]] for m in how)), steps[c], classes
            )
            for c in chunks(len(pair), fit)
        ]
    )
    unmasked = logs[: len(images)][of_image].unsqueeze(1)
    return impact(torch.cat([unmasked, logs[len(images) :].view(pairs, count)], dim=1))


def _log_probability(
    networks: Networks, encoding: Encoding, stage: int, image: Tensor, how: Masking, steps: Tensor, classes: Tensor
) -> Tensor:
    """Log of the class probability of each row, with channels of a stage masked: (V,), double."""
    classifier = networks.classifier
    activation = masked(encoding.output.activations[stage][image], how, steps)
    context = [StageContext() for _ in classifier.stages]
    prefix = encoding.output.context[stage].prefix
    if prefix is not None:  # also mask prefix tokens: the logits may depend on the class token alone
        context[stage] = StageContext(masked(prefix[image].float(), how, steps))
    with single_precision(encoding.device):
        logits = classifier.resume(stage, activation, context)
    return classifier.log_probability(logits, classes[image])
