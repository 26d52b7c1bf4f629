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

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from cefam.attribution.explainer import Explainer
from cefam.concepts.background import with_background
from cefam.concepts.sets import ConceptSet
from cefam.datamodules import FeaturesData
from cefam.datasets.contract import Manifest
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

HELD_OUT = 10  # one photograph in so many is kept for validation
NEIGHBORS = 100  # photographs per neuron of the probe, at most
BATCH = 128  # rows, at most: as for `cefam fit`
TEACHER = "ViT-B-16-quickgelu:openai"


@dataclass(frozen=True)
class Study:
    """What a study has made; ``agreement`` is on photographs kept for validation, ``doubtful`` is ``None`` if those were too few."""

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
    if Manifest.find(images) is not None:
        raise CefamError(f"{images} holds shards, a study takes a folder of image files: use the single commands.")
    tower = named_classifier(classifier, stages, class_names)
    teacher = vlm if isinstance(vlm, VisionLanguageModel) else named_vlm(vlm)
    tower.to(where)
    teacher.to(where)
    found = with_background(ConceptSet.load(concepts), vocabulary(teacher.source)).embed(teacher)
    photographs = Photographs.read(images)
    if photographs.count < 2 * HELD_OUT:
        raise CefamError(f"{images} holds {photographs.count} photograph(s): a study needs at least {2 * HELD_OUT}.")
    key = identity(
        classifier=tower,
        class_names=tower.class_names,
        vlm=teacher,
        concepts=found,
        photographs=photographs.digest,
        views=views,
        epochs=epochs,
        pages=pages,
    )
    make = _Steps(root, Path(images), tower, teacher, found, where, view_of(tower), views, epochs, pages)
    steps: list[tuple[str, str, Callable[[Path], dict[str, Any]]]] = [
        ("photographs", "photographs/list.txt", make.split),
        ("features", "features/val/manifest.json", make.features),
        ("probe", "probe/manifest.json", make.probe),
        ("fit", "artefact/config.json", make.fit),
        ("doctor", "artefact/doubts.json", make.judge),
        ("pages", "pages/index.html", make.write_pages),
    ]
    with Pass(root, key) as work:
        entries = []
        for number, (name, file, step) in enumerate(steps, start=1):
            print(f"[{number}/{len(steps)}] {name}", flush=True)
            entries.append(work.do(Unit(file, "", 1, partial(_timed, name, step))))
    times = ", ".join(f"{entry['step']} {entry['minutes']:.1f}" for entry in entries)
    print(f"Minutes: {times}.")
    trained = Trained.read(root, tower)
    words = {concept.number: concept.word for concept in trained.concepts.concepts}
    doubtful = [words[number] for number in trained.doubts] if entries[4]["judged"] else None
    done = Study(root, trained, entries[3]["agreement"], doubtful)
    print(done)
    return done


def view_of(tower: FrozenClassifier) -> dict[str, Any]:
    """Size of a study's views, and of a photograph's short side before the central crop."""
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


def _timed(name: str, step: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    start = monotonic()
    return {**step(path), "step": name, "minutes": round((monotonic() - start) / 60, 2)}


def part_of(number: int) -> str:
    """The part of a study that a photograph belongs to, by its number: "train" or "val"."""
    return "val" if number % HELD_OUT == HELD_OUT // 2 else "train"


def neighbors(photographs: int) -> int:
    """Photographs per neuron of a study's probe."""
    return min(NEIGHBORS, photographs)


def batch_size(rows: int) -> int:
    """Batch size of a study's training: at least four batches an epoch."""
    return min(BATCH, max(1, rows // 4))


@dataclass(frozen=True)
class _Steps:
    """The steps of a study: each writes the file at ``path``, and whatever else it makes beside it."""

    root: Path
    images: Path
    tower: FrozenClassifier
    teacher: VisionLanguageModel
    concepts: ConceptSet
    device: torch.device
    view: dict[str, Any]
    views: int
    epochs: int
    pages: int

    def split(self, path: Path) -> dict[str, Any]:
        """Link every tenth photograph into ``val``, the others into ``train``."""
        listed = []
        for number, (source, _) in enumerate(list_images(self.images)):
            part = part_of(number)
            target = path.parent / part / source.relative_to(self.images)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                target.symlink_to(source.resolve())
            except OSError:  # Windows without the right to make links
                shutil.copyfile(source, target)
            listed.append(f"{part}\t{source.relative_to(self.images).as_posix()}\n")
        write_text(path, "".join(listed))
        return {}

    def features(self, path: Path) -> dict[str, Any]:
        """Run both networks over random views of ``train`` and the central views of ``val``."""
        workers = max(0, min(4, (os.cpu_count() or 1) - 1))
        for part, count in (("train", self.views), ("val", 0)):
            compute_features(
                self.tower, self.teacher, str(self.root / "photographs" / part), str(self.root / "features" / part), count,
                num_workers=workers, device=str(self.device), **self.view,
            )  # fmt: skip
        return {}

    def probe(self, path: Path) -> dict[str, Any]:
        """Compute the probe of ``train``."""
        train = self.root / "photographs/train"
        top = neighbors(len(list_images(train)))
        device = str(self.device)
        compute_probe(self.tower, self.teacher, str(train), str(path.parent), top, device=device, **self.view)
        return {}

    def fit(self, path: Path) -> dict[str, Any]:
        """Train the translator and export it."""
        train, val = (str(self.root / "features" / part) for part in ("train", "val"))
        data = FeaturesData(train, val)
        data.batch_size = batch_size(data.manifests[0].num_rows)
        module = CEFAM(self.tower, self.teacher, self.concepts)  # type: ignore[arg-type]  # a ConceptSet, in Python
        agreement = self._train(module, data, self.root / "fit")
        Trained.read(self.root / "fit/checkpoints/best.ckpt", self.tower).write(path.parent, overwrite=True)
        return {"agreement": {name: value for name, value in agreement.items() if name.startswith("val/")}}

    def _train(self, module: CEFAM, data: FeaturesData, folder: Path) -> dict[str, float]:
        """Train with the defaults of ``cefam fit``; a stopped training resumes. Returns what the best epoch has logged."""
        checkpoints = folder / "checkpoints"
        best = ModelCheckpoint(checkpoints, "best", monitor="val/loss", auto_insert_metric_name=False)
        last = ModelCheckpoint(checkpoints, "last", enable_version_counter=False)
        trainer = L.Trainer(
            max_epochs=self.epochs,
            accelerator="gpu" if self.device.type == "cuda" else self.device.type,
            devices=[self.device.index or 0] if self.device.type == "cuda" else 1,
            logger=CSVLogger(folder, name="", version=""),
            callbacks=[EarlyStopping("val/loss", patience=10), best, last],
            inference_mode=False,
            enable_model_summary=False,
            log_every_n_steps=1,  # a study has few batches
        )
        stopped = checkpoints / "last.ckpt"
        trainer.fit(module, data, ckpt_path=str(stopped) if stopped.is_file() else None)
        measured = trainer.validate(module, data, ckpt_path=best.best_model_path or str(stopped), verbose=False)[0]
        return {name: float(value) for name, value in measured.items()}

    def judge(self, path: Path) -> dict[str, Any]:
        """Judge the concepts on ``val``, if it holds enough photographs."""
        explainer, photographs = self._explainer(), self._photographs()
        reasons: dict[int, str] = {}
        if len(photographs) >= checkup.FEWEST:
            views = ((stacked([photograph]).to(self.device), None) for photograph in photographs)
            reasons = checkup.judge(checkup.measure(explainer, views))
        key = doubts.key_of(explainer.classifier, explainer.translator, explainer.concepts)
        doubts.write(str(path.parent), key, reasons, {"photographs": len(photographs), "vlm": True, "masks": False})
        return {"judged": len(photographs) >= checkup.FEWEST}

    def write_pages(self, path: Path) -> dict[str, Any]:
        """Explain some photographs of ``val``, evenly spaced."""
        explainer, photographs, entries = self._explainer(), self._photographs(), []
        names = page_names([photograph.name for photograph in photographs])
        labels = labels_of(self.tower, [photograph.name for photograph in photographs])
        step = max(1, len(photographs) // self.pages)
        for photograph, label in list(zip(photographs, labels, strict=True))[::step][: self.pages]:
            explanation = explainer.explain(photograph)[0]
            write_text(path.parent / names[photograph.name], page(explanation))
            named = None if label is None else self.tower.class_name(label)
            entries.append(entry(explanation, quote(names[photograph.name]), named))
        write_text(path, index("Explanations", entries))
        return {}

    def _explainer(self) -> Explainer:
        return Trained.read(self.root / "artefact", self.tower).explainer(self.teacher).to(self.device)

    def _photographs(self) -> list[Photograph]:
        folder, side = self.root / "photographs/val", self.tower.input_size[0]
        return [Photograph.open(path, side, path.relative_to(folder).as_posix()) for path, _ in list_images(folder)]
