"""Stage selection: the association of every stage with every pair (section 3.3)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cefam.attribution.batching import chunks, max_pairs
from cefam.attribution.encoding import Encoding, Networks, single_precision
from cefam.attribution.impact import impact, leading_channels
from cefam.attribution.scores import log_probability
from cefam.pairs import ConceptPairs
from cefam.settings import MethodSettings


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
