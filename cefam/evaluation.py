"""RegionEvaluation, the LightningModule behind ``cefam evaluate``: many methods, one pass over the data."""

import csv
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Unpack

import lightning as L
import torch
from torch import Tensor, nn

from cefam.checks import check_precision, runs_to_its_end
from cefam.concepts import ConceptSet
from cefam.errors import CefamError, ExistsError
from cefam.evaluator import LabeledPairs, RegionEvaluator
from cefam.files import locked, replacing, write_text
from cefam.methods import (
    Bench,
    CEFAMRegions,
    CenterRegions,
    LuminanceRegions,
    MethodFactory,
    RandomChannelRegions,
    RandomMapRegions,
)
from cefam.pairs import RegionBatch
from cefam.presence import PresenceScores, joined
from cefam.probe import Probe
from cefam.report import examples, presence, records, results, tables
from cefam.settings import SettingsChanges
from cefam.towers.vlm import VisionLanguageModel
from cefam.trained import Trained

METHODS: dict[str, MethodFactory] = {
    "CE-FAM": CEFAMRegions,
    "random channel": RandomChannelRegions,
    "random map": RandomMapRegions,
    "center": CenterRegions,
    "luminance": LuminanceRegions,
}


class RegionEvaluation(L.LightningModule):
    """Measure the regions of methods on photographs with masks.

    Writes records (one line per pair, method and protocol), tables and a contact sheet into ``output``; see
    :mod:`cefam.report.results`.

    Args:
        artefact: a folder of ``cefam export`` or a checkpoint of ``cefam fit``.
        output: folder for the results; it must not hold any, unless ``overwrite``.
        overwrite: replace results that are there.
        concepts: another concept set than the artefact's (name or file); needs ``vlm``.
        vlm: the VLM that the translator mimics; only for other concepts, or methods that ask for it.
        probe: a folder of ``cefam probe``, for methods that associate neurons with concepts.
        methods: the rows of the table by name: classes that derive from :class:`cefam.methods.RegionMethod`, with their options.
            ``--model.methods.NAME CLASS`` adds one.
        num_candidates: of the oracle (4 in Table 1, 1 for ImageNet-S); at most the number of stages.
        num_examples: rows of the contact sheet.
        metrics: secondary ones: "pointing", "iou" (at the mask's own area), "auprc".
        presence_scores: measure, too, whether each method's score tells photographs with a concept from those without it.
        reproduces: published tables that the rows are compared with by ``cefam table --paper`` ("table1/resnet50").
        settings: changes of the artefact's settings, by name (:class:`cefam.settings.SettingsChanges`).
    """

    def __init__(
        self,
        artefact: str,
        output: str = "runs/evaluate",
        overwrite: bool = False,
        concepts: str | None = None,
        vlm: VisionLanguageModel | None = None,
        probe: str | None = None,
        methods: dict[str, MethodFactory] = METHODS,
        num_candidates: int = 4,
        num_examples: int = 8,
        metrics: Sequence[str] = (),
        presence_scores: bool = False,
        reproduces: Sequence[str] = (),
        **settings: Unpack[SettingsChanges],
    ) -> None:
        super().__init__()
        self.output, self.overwrite = Path(output), overwrite
        self._lock, self._locked = ExitStack(), False  # held while the output is written
        self._check_output()
        stored = Trained.read(artefact)
        stored.explainer(vlm)  # refuses another VLM
        self.concepts = _chosen(stored.concepts, concepts, vlm)
        self.settings = stored.settings.changed(**settings)
        trained = Trained(
            stored.classifier, stored.translator, self.concepts, stored.vlm_identity, self.settings, stored.training
        )
        self.classifier, self.translator = trained.classifier, trained.translator
        self.vlm = vlm  # a method that asks for it finds it on the device
        bench = Bench(trained, vlm, None if probe is None else Probe.read(probe))
        rows = {name: make(bench) for name, make in methods.items()}
        # Methods with weights move to the device with this module.
        self.networks = nn.ModuleList([method for method in rows.values() if isinstance(method, nn.Module)])
        # As many as CE-FAM has: a random map must not choose among four where CE-FAM has one stage.
        num_candidates = min(num_candidates, len(self.classifier.stages))
        self.evaluator = RegionEvaluator(rows, self.concepts, num_candidates, self.settings, metrics)
        self.num_examples, self.metrics, self.reproduces = num_examples, tuple(metrics), list(reproduces)
        self.presence = PresenceScores(self.evaluator) if presence_scores else None
        self.examples: list[examples.Example] = []
        self._part: Any = None  # this process's open part of the records
        self._outside: list[Tensor] = []  # pairs whose label is not in the concept set, counted on the device

    def _check_output(self) -> None:
        if not self.overwrite and any((self.output / name).exists() for name in results.FILES):
            raise ExistsError(
                f"{self.output} already holds results: name another `model.output`, or set `model.overwrite`."
            )

    def setup(self, stage: str) -> None:
        """Refuse a precision that regions cannot be measured in."""
        check_precision(self.trainer)

    def on_test_start(self) -> None:
        """Start afresh, and open this process's part of the records."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        self.concepts.check_labels(getattr(datamodule, "labels", []))
        self._outside, self.examples = [], []
        self.output.mkdir(parents=True, exist_ok=True)
        if self.global_rank == 0:
            self._lock.enter_context(locked(self.output))
            self._locked = True
            self._check_output()
        self.trainer.strategy.barrier()  # no process touches the folder before the first one has checked it
        self._part = self._part_path(self.global_rank).open("w", newline="", encoding="utf-8")

    def _part_path(self, rank: int, what: str = "records") -> Path:
        return self.output / f".{what}-{rank:04d}.part"

    @runs_to_its_end
    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Measure all methods on a batch and write its records; no process waits for another here."""
        images = RegionBatch(**batch)
        found = self.evaluator.find(images)
        wanted = self.global_rank == 0 and len(self.examples) < self.num_examples
        keep = self._chosen_examples(found) if wanted else []
        output = self.classifier(images.image)
        measured = self.evaluator.evaluate(images, output, found, keep)
        if self.presence is not None:
            self.presence.add(images, output, found)
        self._outside.append(found.outside)
        csv.writer(self._part).writerows(
            records.rows_of(measured, images.ids, self.evaluator.categories, self.concepts, self.metrics)
        )
        if keep:
            names = self.classifier.stage_names
            self.examples += examples.of_pairs(images, measured, keep, self.concepts, names)

    def _chosen_examples(self, found: LabeledPairs) -> list[int]:
        """One pair of each category of a batch; which one depends on its name alone, not on its score."""
        keys, rows = found.pairs.keys(), []
        for category in range(len(self.evaluator.categories)):
            among = (found.category == category).nonzero().squeeze(1)
            rows += among[keys[among].argsort()[:1]].tolist()
        return sorted(rows)

    def on_test_epoch_end(self) -> None:
        """Merge the records of all processes, and make the report from them."""
        self._part.close()
        if self.presence is not None:
            self.presence.write(self._part_path(self.global_rank, "presence"))
        count = torch.stack([*self._outside, torch.zeros((), dtype=torch.long, device=self.device)]).sum()
        outside = int(self.trainer.strategy.reduce(count, reduce_op="sum"))
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            self._report(outside)
        self.trainer.strategy.barrier()
        self.discard()

    @property
    def measured(self) -> bool:
        """Whether there was anything to measure."""
        return self._part is not None

    def discard(self) -> None:
        """Remove the parts of the records, also after a run that failed."""
        parts = (
            set(self.output.glob(".*-*.part")) if self._locked else set()
        )  # those of processes that were killed, too
        if self._part is not None:
            parts.add(Path(self._part.name))
            with suppress(OSError):  # a full disk refuses to close it, too
                self._part.close()
        for part in parts:
            part.unlink(missing_ok=True)
        self._lock.close()

    def _report(self, outside: int) -> None:
        about = results.Run(
            methods=list(self.evaluator.methods),
            categories=self.evaluator.categories,
            num_candidates=self.evaluator.num_candidates,
            preset=self.settings.preset,
            notes=self._notes(outside),
            reproduces=self.reproduces,
            stages=self.classifier.stage_names,
        )
        with replacing(self.output / "records.csv") as merged:
            parts = [self._part_path(rank) for rank in range(self.trainer.world_size)]
            records.merge(parts, merged, self.metrics)
            table = results.table_of(about, merged)
            results.clear(self.output)  # results of an earlier run must not stay with the new ones
        results.write(self.output, about, table, self.examples[: self.num_examples])
        print(tables.to_text(table))
        if self.presence is not None:
            parts = [self._part_path(rank, "presence") for rank in range(self.trainer.world_size)]
            write_text(self.output / presence.FILE, presence.to_csv(*joined(parts), self.concepts))
            print(presence.to_text(self.output / presence.FILE, self.evaluator.categories))
        print(f"Results are in {self.output}.")
        for logger in self.loggers:
            logger.log_metrics(_flat(table))

    def _notes(self, outside: int) -> list[str]:
        """What a reader of the table must know."""
        limit = self.trainer.limit_test_batches  # a number of batches, or 1.0
        counts = sorted({self.settings.masked_count(stage.channels) for stage in self.classifier.stages})
        notes = []
        if isinstance(limit, int):
            notes.append(
                f"Not all photographs: at most {limit} batch(es) of each process were measured (`trainer.limit_test_batches`)."
            )
        if outside:
            notes.append(f"{outside} pair(s) left out: their label is not in the concept set of {len(self.concepts)}.")
        notes.append(results.EXPLANATION)
        notes.append(f"Preset: {self.settings.preset}. K = {', '.join(map(str, counts))}. Source: records.csv.")
        return notes + self._warning_of_narrow_stages()

    def _warning_of_narrow_stages(self) -> list[str]:
        """A note where more than a quarter of a stage is masked: its association hardly depends on the concept."""
        stages = self.classifier.stages
        narrow = [s for s in stages if 4 * self.settings.masked_count(s.channels) > s.channels]
        if not narrow or len(stages) == 1:
            return []
        names = ", ".join(f"{stage.name} ({stage.channels})" for stage in narrow)
        return [
            f"Masking K = {self.settings.num_channels} channels is more than a quarter of stage(s) {names}: their association, and so "
            f"the choice of top-1, says little. Try a smaller `model.num_channels`, or `model.channel_share` 0.125."
        ]


def _chosen(stored: ConceptSet, name: str | None, vlm: VisionLanguageModel | None) -> ConceptSet:
    if name is None:
        return stored
    if vlm is None:
        raise CefamError(
            f"To measure the concepts {name!r} instead of the artefact's, set `model.vlm` to the VLM that the translator mimics."
        )
    return ConceptSet.load(name).embed(vlm)


def _flat(table: tables.Table) -> dict[str, float]:
    """The table as scalars for loggers: protocol/method/metric/category."""
    names = [*table.categories, "avg"]
    return {
        f"{row.protocol}/{row.method}/{metric}/{name}": value
        for row in table.rows
        for metric, values in row.means.items()
        for name, value in zip(names, values, strict=True)
        if value is not None
    }
