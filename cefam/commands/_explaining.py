"""Shared by explain, summarize and doctor: loading an artefact, and listing photographs in files and folders."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cefam.attribution.candidates import matched
from cefam.attribution.explainer import Explainer
from cefam.concepts.sets import ConceptSet
from cefam.datasets.photographs import device_named
from cefam.datasets.sources.images import list_images
from cefam.errors import CefamError, CefamWarning, MissingError
from cefam.explanations import Photograph
from cefam.explanations.explanation import KINDS
from cefam.images.views import EvaluationView
from cefam.io.reading import readable
from cefam.probe import Probe
from cefam.towers.loading import load_source
from cefam.towers.naming import class_number
from cefam.towers.vlm import BRODENETTE, VisionLanguageModel
from cefam.trained import Trained

DEMO = Path("runs/demo/fit/checkpoints/best.ckpt")


@dataclass(frozen=True)
class LoadedArtefact:
    """An artefact that is ready to explain: ``explainer``, and the view of photographs (a number: the usual one of this side)."""

    explainer: Explainer
    view: EvaluationView | int

    def photograph(self, path: Path, name: str | None = None) -> Photograph:
        """Read a photograph."""
        return Photograph.open(path, self.view, name)

    def hint(self, method: str) -> None:
        """Warn that a probe would make the regions more exact."""
        if method == "beyond" and self.explainer.probe is None:
            advice = "Regions would be more exact with a probe: make one with `cefam probe`, and name it as `--probe`."
            warnings.warn(advice, CefamWarning, stacklevel=3)

    def target(self, name: str | int | None) -> int | None:
        """A class by name or index."""
        classifier = self.explainer.classifier
        return None if name is None else class_number(classifier.class_names, classifier.num_classes, name)


def open_artefact(
    artefact: str | None,
    texts: Sequence[str] | ConceptSet | None,
    device: str,
    resize: int | None,
    crop: int | None,
    probe: str | None = None,
) -> tuple[LoadedArtefact, list[int] | None]:
    """Read an artefact, and its VLM if new texts need it or it is available locally.

    Returns:
        The artefact, and the indices of the concepts to choose from (``None``: all).
    """
    if artefact is None and not DEMO.is_file():
        raise MissingError(
            f"No `--artefact` was given, and there is no demo ({DEMO}) to take: name a folder of `cefam export` or a checkpoint of `cefam "
            f"fit`, or run `cefam demo` first."
        )
    trained = Trained.read(artefact or DEMO)
    if probe is not None:
        trained = replace(trained, probe=Probe.read(probe))
    source = (trained.vlm_identity or {}).get("source")
    vlm: VisionLanguageModel | None = None
    if _at_hand(source):
        vlm = load_source("vision-language model", source)
    explainer = trained.explainer(vlm)
    candidates = None
    if texts is not None:
        if vlm is None and matched(explainer.concepts, texts)[1]:
            vlm = load_source("vision-language model", source)
            explainer = trained.explainer(vlm)
        explainer, candidates = explainer.with_candidates(texts)
    explainer.to(device_named(device))
    side = crop or min(explainer.classifier.input_size)
    return LoadedArtefact(explainer, side if resize is None else EvaluationView(resize, side)), candidates


def _at_hand(source: Any) -> bool:
    """Whether a VLM comes from a local file or folder, so that it is loaded without network access."""
    options = (source or {}).get("init_args", {}) if isinstance(source, dict) else {}
    name, weights = str(options.get("name", "")), options.get("pretrained")
    return name in BRODENETTE or name.startswith("local-dir:") or (weights is not None and Path(str(weights)).is_file())


def photographs_of(images: Sequence[str]) -> list[tuple[str, Path]]:
    """List the photographs in files and folders, each with a unique name."""
    found: list[tuple[str, Path]] = []
    for given in images:
        path = Path(given).expanduser()
        if path.is_dir():
            found += [(readable(each.relative_to(path).as_posix()), each) for each, _ in list_images(path)]
        elif path.exists():
            found.append((readable(path.name), path))
        else:
            raise MissingError(f"There is no photograph or folder {given}.")
    name, count = Counter(name for name, _ in found).most_common(1)[0]
    if count > 1:
        raise CefamError(f"Two photographs are called {name}: explain them in two runs.")
    return found


def is_file_name(out: str | None) -> bool:
    """Whether ``out`` is an explanation file, judged by its extension, and not a folder."""
    return out is not None and Path(out).suffix.lower() in KINDS
