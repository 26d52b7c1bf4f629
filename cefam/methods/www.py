"""WWW (Ahn et al., CVPR 2024): a neuron gets all concepts whose weight is close to that of its best concept.

Adaptive concept matching: a concept's weight is the sum over the neuron's examples of cos(example, "A photo of a word") minus
cos(example, "A photo of a").
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.direct import class_score_gradient
from cefam.attribution.scores import pool
from cefam.attribution.types import Activated
from cefam.errors import CefamError
from cefam.methods.associations import Across, Associations, AssociationsAbout, per_concept, prompts_of
from cefam.methods.base import MethodContext
from cefam.methods.neurons import NeuronRegions, encoded, probe_of
from cefam.towers.classifier import FrozenClassifier

TEMPLATE = "A photo of a {}"


def concept_weights(examples: Tensor, text: Tensor, template: Tensor | None = None) -> Tensor:
    """Weights of concepts for neurons: (U, E, D), (T, D), (D,) -> (U, T), double; without ``template``, not adaptive.

    sum over the E examples of (cos(example, text) - cos(example, template)), computed as one product with the sum of the unit
    embeddings.
    """
    summed = F.normalize(examples.double(), dim=-1).sum(dim=1)
    return _weights(summed, F.normalize(text.double(), dim=-1), template)


def _weights(summed: Tensor, text: Tensor, template: Tensor | None) -> Tensor:
    """Concept weights (U, T) from sums of unit embeddings (U, D) and unit text embeddings (T, D)."""
    found = summed.double() @ text.double().T
    if template is not None:
        found = found - summed.double() @ F.normalize(template.double(), dim=-1).unsqueeze(1)
    return found


def selected(weights: Tensor, alpha: float = 95.0) -> Tensor:
    """Mask (U, T) of each neuron's concepts: weights above alpha percent of its largest weight; none if that is not positive."""
    return weights > weights.amax(dim=1, keepdim=True) * (alpha / 100)


def match(
    context: MethodContext,
    alpha: float = 95.0,
    num_examples: int = 40,
    prompt: str | None = TEMPLATE,
    adaptive: bool = True,
) -> Associations:
    """Associate every neuron with its concepts."""
    probe = probe_of(context, "WWW")
    if not 0 < alpha <= 100:
        raise CefamError(f"alpha must be above 0 and at most 100 (percent), got {alpha}.")
    if not 0 < num_examples <= probe.manifest.top:
        raise CefamError(
            f"num_examples must lie between 1 and the {probe.manifest.top} photographs per neuron that the probe {probe.folder} holds, "
            f"got {num_examples}."
        )
    texts, of_concept = prompts_of(context.concepts, prompt)
    text = encoded(context, texts)
    bare = encoded(context, [(TEMPLATE if prompt is None else prompt).format("").strip()])[0] if adaptive else None
    found = []
    for stage, rows in enumerate(probe.photograph):
        summed = probe.embedding.double()[rows[:num_examples]].sum(dim=0)
        weights = _weights(summed, text, bare)
        channel, concept = selected(weights, alpha).nonzero(as_tuple=True)
        found.append((stage, *per_concept(channel, concept, weights[channel, concept], of_concept)))
    options = {"alpha": alpha, "num_examples": num_examples, "prompt": prompt, "adaptive": adaptive}
    return Associations.of_stages(AssociationsAbout.of(context, "www", options, probe), found)


def class_slopes(classifier: FrozenClassifier, activated: Activated, target: Tensor | None = None) -> Tensor:
    """Derivative of a class's output with respect to a uniform shift of each map of the last stage: (B, C_L).

    ``target`` is the class of each image (B,); ``None``: the most probable one.
    """
    return class_score_gradient(classifier, activated.output, activated.images, target).sum(dim=(-2, -1))


def neuron_contributions(classifier: FrozenClassifier, activated: Activated, target: Tensor | None = None) -> Tensor:
    """First-order contribution of each neuron of the last stage to a class's output: z_k * d output / d z_k, (B, C_L).

    If the stage is followed by average pooling and one linear layer, this is exactly z_k W_ck, the Shapley value for a zero
    baseline. Arguments as for :func:`class_slopes`.
    """
    return pool(activated.output.activations[-1].float()) * class_slopes(classifier, activated, target)


class WWWRegions(NeuronRegions):
    """Regions of the neurons that WWW associates with a concept; concepts without a neuron have no region.

    Args:
        context: must have a probe and a VLM, unless ``associations`` is given.
        alpha: threshold for a concept's weight, in percent of the neuron's largest weight.
        num_examples: photographs per neuron.
        prompt: prompt template, with ``{}`` for the concept's word; ``None``: each concept's own prompt.
        adaptive: subtract the similarity with the template without a concept.
        across: normalization of weights across stages: "raw" (published), "zscore" or "rank".
        stages: names of the stages whose neurons are used; ``None``: all.
        associations: folder of existing associations.
    """

    def __init__(
        self,
        context: MethodContext,
        alpha: float = 95.0,
        num_examples: int = 40,
        prompt: str | None = TEMPLATE,
        adaptive: bool = True,
        across: Across = "raw",
        stages: Sequence[str] | None = None,
        associations: str | None = None,
    ) -> None:
        found = (
            Associations.read(associations) if associations else match(context, alpha, num_examples, prompt, adaptive)
        )
        super().__init__(context, found, across, stages)

    def contributions(self, activated: Activated, target: Tensor | None = None) -> Tensor:
        """Contribution of every neuron of the last stage (B, C_L); see :func:`neuron_contributions`."""
        assert self.context is not None
        return neuron_contributions(self.context.classifier, activated, target)
