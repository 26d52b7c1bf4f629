"""``cefam associate``: associate neurons with concepts, from a probe."""

from pathlib import Path
from typing import Literal

from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError
from cefam.exchange.neurons import write_descriptions, write_www
from cefam.methods.base import MethodContext
from cefam.methods.clip_dissect import dissect
from cefam.methods.www import match
from cefam.probe import Probe
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.vlm import VisionLanguageModel


def associate(
    method: Literal["clip_dissect", "www"],
    probe: str,
    classifier: FrozenClassifier,
    vlm: VisionLanguageModel,
    folder: str,
    concepts: str = "broden",
    similarity: Literal["soft_wpmi", "wpmi", "rank_reorder", "cos_similarity", "cos_similarity_cubed"] = "soft_wpmi",
    alpha: float = 95.0,
) -> None:
    """Associate neurons with concepts; write an artefact, and a file in the format of the method's original program.

    No photograph is read: one probe can be used with any number of concept sets.

    Args:
        method: "clip_dissect" or "www".
        probe: a folder of `cefam probe`.
        classifier: the classifier of the probe.
        vlm: the vision-language model of the probe.
        folder: output folder for the associations.
        concepts: a concept set by name or file.
        similarity: similarity function of CLIP-Dissect.
        alpha: threshold of WWW, in percent of a neuron's largest weight.
    """
    if (Path(folder) / "associations.json").exists():
        raise CefamError(f"{folder} already holds associations: name another folder.")
    context = MethodContext.untrained(classifier, ConceptSet.load(concepts), vlm, Probe.read(probe))
    if method == "www":
        found = match(context, alpha)
        write_www(found, folder)
    else:
        found = dissect(context, similarity)
        write_descriptions(found, Path(folder) / "descriptions.csv")
    neurons = len(set(zip(found.stage.tolist(), found.channel.tolist(), strict=True)))
    print(f"{neurons} neurons stand for {len(set(found.concept.tolist()))} of {len(context.concepts)} concepts.")
    print(f"Associations are in {found.write(folder)}.")
