"""``cefam import``: import artefacts of other programs, without executing code from them."""

from pathlib import Path
from typing import Literal

from cefam.concepts.sets import ConceptSet, embedded
from cefam.errors import CefamError
from cefam.exchange.neurons import read_descriptions, read_www
from cefam.exchange.published import read_translator
from cefam.methods.base import MethodContext
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.vlm import VisionLanguageModel
from cefam.trained import Trained


def import_(
    kind: Literal["cefam", "clip_dissect", "www"],
    files: dict[str, str],
    classifier: FrozenClassifier,
    folder: str,
    concepts: str = "broden",
    vlm: VisionLanguageModel | None = None,
) -> None:
    """Import a published translator (.pth), CLIP-Dissect's descriptions.csv, or WWW's pickles.

    Args:
        kind: "cefam", "clip_dissect" or "www".
        files: files by stage, `{layer4: www.pkl}`; for "cefam" and "clip_dissect" a single file, under any key.
        classifier: the classifier for which they were made, with its stages.
        folder: output folder for the imported artefact.
        concepts: the concept set with which they were made.
        vlm: the vision-language model that the translator mimics; required for "cefam".
    """
    if kind != "www" and len(files) != 1:
        raise CefamError(f"One file is imported as {kind!r}, got {len(files)}.")
    path = next(iter(files.values()))
    if kind == "cefam":
        if vlm is None:
            raise CefamError("A translator needs the concepts' embeddings: set `--vlm` to the model that it mimics.")
        translator, about = read_translator(path, classifier.channels)
        scale = about.get("scale")
        if isinstance(scale, float | int) and scale and abs(scale - vlm.logit_scale) > 0.01 * abs(vlm.logit_scale):
            raise CefamError(
                f"The translator was trained with a logit scale of {scale}, the given vision-language model has {vlm.logit_scale}: name "
                f"the model that it mimics."
            )
        trained = Trained(
            classifier,
            translator,
            embedded(concepts, vlm),
            vlm.freeze().identity(),
            training={"imported": Path(path).name},
        )
        place = trained.write(folder)
    else:
        context = MethodContext.untrained(classifier, ConceptSet.load(concepts))
        found = read_descriptions(path, context) if kind == "clip_dissect" else read_www(files, context)
        place = found.write(folder)
    print(f"Imported into {place}.")
