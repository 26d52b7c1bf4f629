"""Shared by explain, summarize and doctor: loading an artefact, and listing photographs in files and folders."""

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from cefam.attribution.candidates import matched
from cefam.attribution.explainer import Explainer
from cefam.attribution.types import Fused
from cefam.concepts.sets import ConceptSet
from cefam.datasets.photographs import device_named
from cefam.datasets.sources.images import list_images
from cefam.errors import CefamError, CefamWarning, MissingError
from cefam.explanations import Photograph
from cefam.explanations.explanation import KINDS
from cefam.images.views import EvaluationView
from cefam.io.reading import readable
from cefam.methods import BeyondRegions, MethodContext
from cefam.probe import Probe
from cefam.towers.loading import load_source
from cefam.towers.naming import class_number
from cefam.towers.vlm import BRODENETTE, VisionLanguageModel
from cefam.trained import Trained

DEMO = Path("runs/demo/fit/checkpoints/best.ckpt")
LONGEST = 180  # bytes of a page's name; file systems allow 255, including the suffix of a temporary name
DEMO_PROBE = Path("runs/demo/probe")


@dataclass(frozen=True)
class LoadedArtefact:
    """A loaded artefact: ``explainer``, and ``view``, how photographs are cut (a number: the usual view of this size).

    ``vlm``: identity of the vision-language model; ``fused``: computes regions that combine all stages, or ``None``;
    ``probe``: the probe from which their directions are learned.
    """

    explainer: Explainer
    view: EvaluationView | int
    vlm: dict[str, Any] | None = None
    probe: Probe | None = None
    fused: Fused | None = None

    def photograph(self, path: Path, name: str | None = None) -> Photograph:
        """Read a photograph."""
        return Photograph.open(path, self.view, name)

    def with_regions(self, method: str, probe: str | None) -> Self:
        """A copy with the regions of a method: "ce-fam", or "beyond" with an optional probe.

        Raises:
            CefamError: if the probe is missing, belongs to other towers, or is not used by the method.
        """
        if method == "ce-fam":
            if probe is not None:
                raise CefamError('Only the method "beyond" takes a probe: leave `--probe` or `--method` out.')
            return self
        explainer = self.explainer
        parts = explainer.classifier, explainer.translator, explainer.concepts
        trained = Trained(*parts, vlm_identity=self.vlm, settings=explainer.settings)
        stored = None if probe is None else Probe.read(probe)
        return replace(self, probe=stored, fused=BeyondRegions(MethodContext(trained, probe=stored)).maps)

    def hint(self) -> None:
        """Warn if a probe would make the regions more exact."""
        if self.fused is not None and self.probe is None:
            advice = "Regions would be more exact with a probe: make one with `cefam probe`, and name it as `--probe`."
            warnings.warn(advice, CefamWarning, stacklevel=3)

    def target(self, name: str | int | None) -> int | None:
        """Index of a class given by name or index; ``None`` if none is given."""
        classifier = self.explainer.classifier
        return None if name is None else class_number(classifier.class_names, classifier.num_classes, name)


def demo_probe(artefact: str | None, method: str) -> str | None:
    """The demo's probe, if the artefact is the demo's and the method uses a probe."""
    return str(DEMO_PROBE) if artefact is None and method == "beyond" and DEMO_PROBE.is_dir() else None


def open_artefact(
    artefact: str | None, texts: Sequence[str] | ConceptSet | None, device: str, resize: int | None, crop: int | None
) -> tuple[LoadedArtefact, list[int] | None]:
    """Read an artefact, and its VLM if new texts need it or it is available locally.

    Returns:
        The artefact, and the indices of the concepts to choose from (``None``: all).

    Raises:
        MissingError: if no artefact is given and there is no demo.
    """
    if artefact is None and not DEMO.is_file():
        raise MissingError(
            f"No `--artefact` was given, and there is no demo ({DEMO}) to take: name a folder of `cefam export` or a checkpoint of `cefam "
            f"fit`, or run `cefam demo` first."
        )
    trained = Trained.read(artefact or DEMO)
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
    where = device_named(device)
    for module in (explainer.classifier, explainer.translator, explainer.vlm):
        if module is not None:
            module.to(where)
    side = crop or min(explainer.classifier.input_size)
    view = side if resize is None else EvaluationView(resize, side)
    return LoadedArtefact(explainer, view, trained.vlm_identity), candidates


def _at_hand(source: Any) -> bool:
    """Whether a VLM comes from a local file or folder, so that it is loaded without network access."""
    options = (source or {}).get("init_args", {}) if isinstance(source, dict) else {}
    name, weights = str(options.get("name", "")), options.get("pretrained")
    return name in BRODENETTE or name.startswith("local-dir:") or (weights is not None and Path(str(weights)).is_file())


def photographs_of(images: Sequence[str]) -> list[tuple[str, Path]]:
    """List the photographs in files and folders, each with a unique name.

    Raises:
        MissingError: if a file or folder does not exist.
    """
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


def page_names(names: Sequence[str]) -> dict[str, str]:
    """File names of the photographs' pages in one flat folder, unique even on case-insensitive file systems."""
    flat = {name: name.replace("/", "__") for name in names}
    count = Counter(page.casefold() for page in flat.values())
    return {
        name: f"{page}.html"
        if count[page.casefold()] == 1 and len(page.encode()) <= LONGEST
        else f"{page.encode()[:LONGEST].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.html"
        for name, page in flat.items()
    }


def is_file_name(out: str | None) -> bool:
    """Whether ``out`` is an explanation file, judged by its extension, and not a folder."""
    return out is not None and Path(out).suffix.lower() in KINDS
