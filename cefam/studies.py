"""From a classifier, photographs and words to pages: ``cefam study`` and :func:`cefam.study`. It composes the other passes."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import quote

import torch
from torch import nn

from cefam.attribution.explainer import Explainer
from cefam.concepts.background import with_background
from cefam.concepts.sets import ConceptSet
from cefam.datamodules import FeaturesData
from cefam.datasets.features import compute_features
from cefam.datasets.photographs import Photographs, device_named
from cefam.datasets.sources.images import list_images
from cefam.doctor import checkup, doubts
from cefam.errors import CefamError
from cefam.explanations import Photograph
from cefam.explanations.page import entry, index, page, page_names
from cefam.explanations.photograph import stacked
from cefam.io.files import write_text
from cefam.io.identity import identity
from cefam.io.passes import JOURNAL, Pass, Unit
from cefam.probe.compute import compute_probe
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.named import named_classifier, named_vlm
from cefam.towers.naming import labels_of
from cefam.towers.vlm import BRODENETTE, VisionLanguageModel
from cefam.trained import Trained
from cefam.training.module import CEFAM
from cefam.training.run import fit

HELD_OUT = 10  # one photograph in so many is kept for validation
NEIGHBORS = 100  # photographs per neuron of the probe, at most
TEACHER = "ViT-B-16-quickgelu:openai"


@dataclass(frozen=True)
class Study:
    """What a study has made.

    Args:
        folder: of the study.
        trained: read from it.
        agreement: with the teacher, on the photographs kept for validation, by name.
        doubtful: words of the doubtful concepts; ``None``: too few photographs to judge them.
    """

    folder: Path
    trained: Trained
    agreement: dict[str, float]
    doubtful: list[str] | None

    def __str__(self) -> str:
        count, cosine = len(self.trained.concepts.shown), self.agreement.get("val/cosine", float("nan"))
        if self.doubtful is None:
            verdict = f"Concepts were not judged: that needs at least {checkup.FEWEST * HELD_OUT} photographs."
        else:
            listed = ", ".join(self.doubtful[:8]) + (" ..." if len(self.doubtful) > 8 else "")
            verdict = f"{len(self.doubtful)} of {count} concepts are doubtful{f': {listed}' if listed else ''}."
        return "\n".join(
            [
                f"The translator agrees with the teacher by a cosine of {cosine:.2f} on photographs it has not seen (1: perfectly).",
                verdict,
                f"Pages: {self.folder / 'pages' / 'index.html'}",
                f"Next: cefam explain PHOTOGRAPH --artefact {self.folder}",
            ]
        )


def study(
    classifier: str | nn.Module,
    images: str | Path,
    concepts: str | Path | Sequence[str],
    folder: str | Path = "runs/study",
    vlm: str | VisionLanguageModel = TEACHER,
    views: int = 1,
    epochs: int = 100,
    pages: int = 24,
    stages: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    device: str = "auto",
) -> Study:
    """Train a translator for a classifier and explain photographs with it. A stopped study resumes.

    Args:
        classifier: a network (its parameters are frozen and it is set to eval mode), or the name of one: see
            :func:`cefam.towers.named.named_classifier`.
        images: a folder of photographs; every tenth is kept for validation, judging concepts and pages.
        concepts: a concept set by name or file, or words.
        folder: for everything that is made.
        vlm: the teacher, or its name: see :func:`cefam.towers.named.named_vlm`.
        views: random views per photograph; more take longer and train better.
        epochs: of the training, at most.
        pages: photographs that are explained, at most.
        stages: names of modules; ``None``: the last of each resolution.
        class_names: names of the classes; ``None``: those that the network brings.
        device: "auto", "cpu", "cuda" ...

    Raises:
        CefamError: for too few photographs, or a folder that holds another study or anything else.
    """
    root, where = Path(folder), device_named(device)
    if root.is_dir() and any(root.iterdir()) and not (root / JOURNAL).is_file():
        raise CefamError(f"{root} holds something other than a study: name another folder, or remove it.")
    tower = named_classifier(classifier, stages, class_names)
    teacher = vlm if isinstance(vlm, VisionLanguageModel) else named_vlm(vlm)
    tower.to(where)
    teacher.to(where)
    found = with_background(ConceptSet.load(concepts), vocabulary(teacher.source)).embed(teacher)
    photographs = Photographs.read(images)
    if photographs.count < 2 * HELD_OUT:
        raise CefamError(f"{images} holds {photographs.count} photograph(s): a study needs at least {2 * HELD_OUT}.")
    view = view_of(tower)
    key = identity(
        classifier=tower,
        vlm=teacher,
        concepts=found,
        photographs=photographs.digest,
        views=views,
        epochs=epochs,
        pages=pages,
    )
    steps: list[tuple[str, str, Callable[[Path], dict[str, Any]]]] = [
        ("photographs", "photographs/list.txt", partial(_split, Path(images))),
        ("features", "features/val/manifest.json", partial(_features, root, tower, teacher, views, device, view)),
        ("probe", "probe/manifest.json", partial(_probe, root, tower, teacher, device, view)),
        ("fit", "artefact/config.json", partial(_fit, root, tower, teacher, found, epochs, where)),
        ("doctor", "artefact/doubts.json", partial(_judge, root, tower, teacher, where)),
        ("pages", "pages/index.html", partial(_pages, root, tower, teacher, pages)),
    ]
    with Pass(root, key) as work:
        entries = []
        for number, (name, file, make) in enumerate(steps, start=1):
            print(f"[{number}/{len(steps)}] {name}", flush=True)
            entries.append(work.do(Unit(file, "", 1, partial(_timed, name, make))))
    times = ", ".join(f"{entry['step']} {entry['minutes']:.1f}" for entry in entries)
    print(f"Minutes: {times}.")
    trained = Trained.read(root, tower)
    words = {concept.number: concept.word for concept in trained.concepts.concepts}
    doubtful = [words[number] for number in trained.doubts] if entries[4]["judged"] else None
    done = Study(root, trained, entries[3]["agreement"], doubtful)
    print(done)
    return done


def view_of(tower: FrozenClassifier) -> dict[str, int]:
    """Size of a study's views, and of a photograph's short side before the central crop.

    Raises:
        CefamError: if the classifier's input is not square.
    """
    side, width = tower.input_size
    if side != width:
        raise CefamError(
            f"The classifier takes images of {side} x {width}, a study cuts squares: use the single commands."
        )
    return {"size": side, "resize": round(side * 256 / 224)}


def vocabulary(source: dict[str, Any] | None) -> str:
    """The set that a teacher knows best, as the background of a few concepts."""
    named = (source or {}).get("init_args", {}).get("name")
    return "brodenette" if named in BRODENETTE else "broden"


def _timed(name: str, make: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    start = monotonic()
    return {**make(path), "step": name, "minutes": round((monotonic() - start) / 60, 2)}


def _split(images: Path, path: Path) -> dict[str, Any]:
    """Link every tenth photograph into ``val``, the others into ``train``."""
    listed = []
    for number, (source, _) in enumerate(list_images(images)):
        part = "val" if number % HELD_OUT == HELD_OUT // 2 else "train"
        target = path.parent / part / source.relative_to(images)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            target.symlink_to(source.resolve())
        except OSError:  # Windows without the right to make links
            shutil.copyfile(source, target)
        listed.append(f"{part}\t{source.relative_to(images).as_posix()}\n")
    write_text(path, "".join(listed))
    return {}


def _features(
    root: Path,
    tower: FrozenClassifier,
    teacher: VisionLanguageModel,
    views: int,
    device: str,
    view: dict[str, Any],
    path: Path,
) -> dict[str, Any]:
    workers = max(0, min(4, (os.cpu_count() or 1) - 1))
    for part, count in (("train", views), ("val", 0)):
        compute_features(
            tower, teacher, str(root / "photographs" / part), str(root / "features" / part), count,
            num_workers=workers, device=device, **view,
        )  # fmt: skip
    return {}


def _probe(
    root: Path, tower: FrozenClassifier, teacher: VisionLanguageModel, device: str, view: dict[str, Any], path: Path
) -> dict[str, Any]:
    train = root / "photographs/train"
    top = min(NEIGHBORS, len(list_images(train)))
    compute_probe(tower, teacher, str(train), str(path.parent), top, device=device, **view)
    return {}


def _fit(
    root: Path,
    tower: FrozenClassifier,
    teacher: VisionLanguageModel,
    concepts: ConceptSet,
    epochs: int,
    device: torch.device,
    path: Path,
) -> dict[str, Any]:
    train, val = (str(root / "features" / part) for part in ("train", "val"))
    data = FeaturesData(train, val)
    data.batch_size = min(data.batch_size, max(1, data.manifests[0].num_rows // 4))
    module = CEFAM(tower, teacher, concepts)  # type: ignore[arg-type]  # a ConceptSet, in Python
    agreement = fit(module, data, root / "fit", epochs, device)
    Trained.read(root / "fit/checkpoints/best.ckpt", tower).write(path.parent, overwrite=True)
    return {"agreement": {name: value for name, value in agreement.items() if name.startswith("val/")}}


def _photographs(root: Path, side: int) -> list[Photograph]:
    folder = root / "photographs/val"
    return [Photograph.open(path, side, path.relative_to(folder).as_posix()) for path, _ in list_images(folder)]


def _explainer(root: Path, tower: FrozenClassifier, teacher: VisionLanguageModel) -> Explainer:
    return Trained.read(root / "artefact", tower).explainer(teacher)


def _judge(
    root: Path, tower: FrozenClassifier, teacher: VisionLanguageModel, device: torch.device, path: Path
) -> dict[str, Any]:
    explainer = _explainer(root, tower, teacher).to(device)
    photographs = _photographs(root, tower.input_size[0])
    reasons: dict[int, str] = {}
    if len(photographs) >= checkup.FEWEST:
        views = ((stacked([photograph]).to(device), None) for photograph in photographs)
        reasons = checkup.judge(checkup.measure(explainer, views))
    key = doubts.key_of(explainer.classifier, explainer.translator, explainer.concepts)
    doubts.write(str(path.parent), key, reasons, {"photographs": len(photographs), "vlm": True, "masks": False})
    return {"judged": len(photographs) >= checkup.FEWEST}


def _pages(root: Path, tower: FrozenClassifier, teacher: VisionLanguageModel, count: int, path: Path) -> dict[str, Any]:
    explainer, entries = _explainer(root, tower, teacher), []
    photographs = _photographs(root, tower.input_size[0])
    names = page_names([photograph.name for photograph in photographs])
    labels = labels_of(tower, [photograph.name for photograph in photographs])
    step = max(1, len(photographs) // count)
    for photograph, label in list(zip(photographs, labels, strict=True))[::step][:count]:
        explanation = explainer.explain(photograph)[0]
        write_text(path.parent / names[photograph.name], page(explanation))
        entries.append(
            entry(explanation, quote(names[photograph.name]), None if label is None else tower.class_name(label))
        )
    write_text(path, index("Explanations", entries))
    return {}
