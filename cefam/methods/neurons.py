"""Regions of single neurons: maps of the neurons that, for example, CLIP-Dissect or WWW associate with a concept."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cefam.attribution.scores import pool
from cefam.attribution.types import Activated
from cefam.concepts.texts import encode_texts
from cefam.errors import CefamError
from cefam.images.views import resize_regions
from cefam.methods.associations import Across, Associations, Neurons
from cefam.methods.base import MethodContext, RegionMethod, chosen_stages
from cefam.pairs import Candidates, ConceptPairs
from cefam.probe import Probe
from cefam.towers.identity import CLASSIFIER_KEYS, VLM_KEYS, check_identity


class NeuronRegions(RegionMethod):
    """Raw maps of the best neurons of a concept, resized to the mask; concepts without a neuron have no region.

    Args:
        context: provides the classifier.
        associations: associations of its neurons with the context's concepts.
        across: normalization of scores across stages; see :meth:`Associations.best`.
        stages: names of the stages whose neurons are used; ``None``: all.
    """

    def __init__(
        self,
        context: MethodContext,
        associations: Associations,
        across: Across = "raw",
        stages: Sequence[str] | None = None,
    ) -> None:
        super().__init__(context)
        associations.check(context)
        self.associations, self.across = associations, across
        self.stages = None if stages is None else chosen_stages(stages, context.classifier.stage_names)
        self._tables: dict[tuple[int, torch.device], Neurons] = {}

    def best(self, count: int, device: torch.device) -> Neurons:
        """Table of the ``count`` best neurons of every concept, cached per device."""
        if (count, device) not in self._tables:
            found = self.associations.best(count, self.across, self.stages)
            self._tables[count, device] = Neurons(*(part.to(device) for part in found))
        return self._tables[count, device]

    def neurons(self, activated: Activated) -> Sequence[Tensor]:
        """Maps of all neurons, one (B, C_l, H_l, W_l) per stage."""
        return activated.output.activations

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """See :class:`cefam.methods.RegionMethod`."""
        device = activated.images.device
        pairs = pairs.to(device)
        stage, channel, score, valid = (part[pairs.concept] for part in self.best(num_candidates, device))
        maps = torch.zeros(*stage.shape, *size, device=device)
        for index, activation in enumerate(self.neurons(activated)):
            row, place = (stage == index).nonzero(as_tuple=True)
            chosen = activation[pairs.image[row], channel[row, place]].float()
            maps[row, place] = resize_regions(chosen, size)
        return Candidates(maps, score, stage, valid)

    def presence(self, activated: Activated) -> Tensor:
        """Mean activation of each concept's best neuron (B, T); NaN for concepts without a neuron."""
        stage, channel, _, valid = (part.squeeze(1) for part in self.best(1, activated.images.device))
        found = torch.full((len(activated.images), len(stage)), torch.nan, device=stage.device)
        for index, activation in enumerate(self.neurons(activated)):
            mine = valid & (stage == index)
            found[:, mine] = pool(activation.float())[:, channel[mine]]
        return found


def classifier_probe(context: MethodContext, method: str) -> Probe:
    """The context's probe, verified to be of its classifier."""
    if context.probe is None:
        raise CefamError(f"{method} needs a probe: make it with `cefam probe`, and name its folder as `probe`.")
    check_identity("classifier", context.probe.manifest.classifier, context.classifier.identity(), CLASSIFIER_KEYS)
    return context.probe


def probe_of(context: MethodContext, method: str) -> Probe:
    """The context's probe, verified to be of its classifier and VLM."""
    probe = classifier_probe(context, method)
    if context.vlm is None:
        raise CefamError(f"{method} encodes texts: set `model.vlm` to the vision-language model of the probe.")
    check_identity("vision-language model", probe.manifest.vlm, context.vlm.freeze().identity(), VLM_KEYS)
    return probe


def encoded(context: MethodContext, texts: Sequence[str]) -> Tensor:
    """Unit text embeddings (T, D), on the CPU."""
    if context.vlm is None:
        raise CefamError("Texts need the vision-language model: set `model.vlm`.")
    return encode_texts(context.vlm, texts)
