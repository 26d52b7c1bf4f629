"""RegionEvaluation, the LightningModule behind ``cefam evaluate``: many methods, one pass over the data."""

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack
from uuid import uuid4

import lightning as L
import torch
from torch import nn

from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError, ExistsError
from cefam.evaluation.evaluator import LabeledPairs, RegionEvaluator
from cefam.evaluation.presence import joined, presence_scores
from cefam.io.files import csv_text, locked, replacing, write_text
from cefam.io.identity import identity
from cefam.io.passes import Pass, Unit
from cefam.methods import (
    CEFAMRegions,
    CenterRegions,
    LuminanceRegions,
    MethodContext,
    MethodFactory,
    RandomChannelRegions,
    RandomMapRegions,
)
from cefam.methods.neurons import NeuronRegions
from cefam.pairs import RegionBatch
from cefam.probe import Probe
from cefam.report import examples, presence, records, results, tables
from cefam.report.parts import FOLDER, examples_in, presence_in, records_in, reporting, write_part
from cefam.settings import SettingsChanges
from cefam.towers.vlm import VisionLanguageModel
from cefam.trained import Trained
from cefam.training.trainer_checks import check_precision

NO_OPTIONS = ("output", "overwrite", "artefact", "concepts", "probe")  # not in the key, which hashes file contents
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
        output: folder for the results; it must not hold results unless ``overwrite`` is set.
        overwrite: replace existing results.
        concepts: concept set (name or file) to use instead of the artefact's; needs ``vlm``.
        vlm: the VLM that the translator mimics; only needed with ``concepts``, or for methods that use it.
        probe: a folder of ``cefam probe``, for methods that associate neurons with concepts.
        methods: methods by their name in the table: subclasses of :class:`cefam.methods.RegionMethod`, with their options.
            ``--model.methods.NAME CLASS`` adds one.
        num_candidates: number of candidates for the oracle (4 in Table 1, 1 for ImageNet-S); limited to the number of stages.
        num_examples: number of rows of the contact sheet.
        metrics: secondary metrics: "pointing", "iou" (at the mask's area), "auprc"; "specific" and "present", the NRA minus that
            of the method's regions for three other concepts of the category, and for one that is in the photograph, too.
        presence_scores: also measure how well each method's scores tell photographs with a concept from those without it, and
            what its first concepts are worth; with ``vlm``, also of the VLM's own scores.
        settings: changes to the artefact's settings, by name (:class:`cefam.settings.SettingsChanges`).
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
        **settings: Unpack[SettingsChanges],
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["vlm"], logger=False)
        self.output, self.overwrite = Path(output), overwrite
        self.artefact, self.probe, self.other_concepts = artefact, probe, concepts
        self.factories, self.num_candidates, self.changes = dict(methods), num_candidates, settings
        self.num_examples, self.metrics, self.presence_scores = num_examples, tuple(metrics), presence_scores
        self.vlm = vlm
        self.work: Pass | None = None  # writes a part per batch
        self._lock = ExitStack()  # held while the output is written
        self._check_output()
        self.trained = Trained.read(artefact)
        self.trained.check_vlm(vlm)

    def _check_output(self) -> None:
        there = any((self.output / name).exists() for name in results.FILES)
        if there and not self.overwrite and not reporting(self.output).exists():
            raise ExistsError(
                f"{self.output} already holds results: name another `model.output`, or set `model.overwrite`."
            )

    def setup(self, stage: str) -> None:
        """Build the methods on the device, check data and options, and find the finished batches of a stopped run."""
        check_precision(self.trainer)
        if self.trainer.limit_test_batches == 0:
            raise CefamError("Nothing would be measured: set `trainer.limit_test_batches` above 0.")
        self.make_methods(self.trainer.strategy.root_device)
        data: Any = getattr(self.trainer, "datamodule", None)
        self.concepts.check_labels(getattr(data, "labels", []))
        self._check_output()
        share = (self.global_rank, self.trainer.world_size)
        if self.global_rank == 0:
            self.output.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(locked(self.output))
        self.work = self._lock.enter_context(Pass(self.output / FOLDER, self._key(data), share, replace=True))
        done = len(self.work.files())
        self.trainer.strategy.barrier()  # no process writes before all have counted the files
        if _is_numbered(data) and self.global_rank == 0:
            finished = f"; {done} of them are measured already" if done else ""
            print(f"{data.counts()} for {self.trainer.world_size} process(es){finished}.")

    def make_methods(self, device: torch.device) -> None:
        """Make and fit the methods."""
        self.trained.classifier.to(device)
        self.trained.translator.to(device)
        if self.vlm is not None:
            self.vlm.to(device)
        self.concepts = _chosen(self.trained.concepts, self.other_concepts, self.vlm)
        self.settings = self.trained.settings.changed(**self.changes)
        trained = replace(self.trained, concepts=self.concepts, settings=self.settings, doubts={})
        self.classifier, self.translator = trained.classifier, trained.translator
        probe = trained.probe if self.probe is None else Probe.read(self.probe)
        context = MethodContext(trained, self.vlm, probe)
        methods = {name: make(context) for name, make in self.factories.items()}
        # Files named in the options; their content is part of the key.
        self.inputs = [context.probe, *(m.associations for m in methods.values() if isinstance(m, NeuronRegions))]
        # Methods with weights move to the device with this module.
        self.networks = nn.ModuleList([method for method in methods.values() if isinstance(method, nn.Module)])
        # Limit the candidates to the number of stages, for chance methods too.
        candidates = min(self.num_candidates, len(self.classifier.stages))
        self.evaluator = RegionEvaluator(methods, self.concepts, candidates, self.settings, self.metrics)

    def _key(self, data: Any) -> Any:
        """The key that identifies this evaluation; random for limited runs, and if data or options cannot be identified."""
        options = {name: value for name, value in self.hparams.items() if name not in NO_OPTIONS}
        try:
            plain = json.loads(json.dumps([options, str(self.trainer.precision)], default=_class_name))
        except TypeError:
            plain = None
        if plain is None or self._limited or not _is_numbered(data):
            return uuid4().hex
        networks = {"classifier": self.classifier, "translator": self.translator, "vlm": self.vlm}
        settings = {"settings": self.settings.to_dict(), "options": plain}
        return identity(**networks, concepts=self.concepts, **settings, inputs=self.inputs, data=data.identity())

    def test_step(self, batch: RegionBatch, batch_idx: int) -> None:
        """Measure all methods on a batch, unless a stopped run already did, without process synchronization."""
        number = batch.number if batch.number >= 0 else batch_idx * self.trainer.world_size + self.global_rank
        assert self.work is not None  # made in setup
        self.work.do(Unit(f"{number:08d}.npz", "", 1, partial(self._measure, batch, number)))

    def _measure(self, batch: RegionBatch, number: int, path: Path) -> dict[str, Any]:
        found = self.evaluator.find(batch)
        # Only the first batches supply examples.
        keep = self._chosen_examples(found) if number < self.num_examples else []
        output = self.classifier(batch.image)
        measured = self.evaluator.evaluate(batch, output, found, keep)
        scores = presence_scores(self.evaluator, batch, output, found, self.vlm) if self.presence_scores else {}
        rows = records.rows_of(measured, batch.ids, self.evaluator.categories, self.concepts, self.metrics)
        kept = examples.of_pairs(batch, measured, keep, self.concepts, self.classifier.stage_names) if keep else []
        write_part(path, rows, scores, kept)
        return {"outside": int(found.outside)}

    def _chosen_examples(self, found: LabeledPairs) -> list[int]:
        """One pair per category of a batch, chosen by its key and not by its score."""
        keys, rows = found.pairs.keys(), []
        for category in range(len(self.evaluator.categories)):
            among = (found.category == category).nonzero().squeeze(1)
            rows += among[keys[among].argsort()[:1]].tolist()
        return sorted(rows)

    @property
    def _limited(self) -> bool:
        """Whether ``limit_test_batches`` is a number of batches (Lightning rejects a share for such data)."""
        return isinstance(self.trainer.limit_test_batches, int)

    def on_test_epoch_end(self) -> None:
        """Write the report from the parts of all processes, on rank 0; the other ranks do not wait for it."""
        assert self.work is not None
        self.trainer.strategy.barrier()
        done = len(self.work.files())
        self.trainer.strategy.barrier()  # rank 0 removes the parts after all ranks have counted them
        data: Any = getattr(self.trainer, "datamodule", None)
        if _is_numbered(data) and not self._limited and done < data.num_batches:
            raise CefamError(
                f"{done} of {data.num_batches} batches are in {self.output}: run the same command again, which measures the others. On "
                f"several nodes `model.output` must lie on a disk that all of them share."
            )
        if self.trainer.is_global_zero:
            self._report(self.work)
            shutil.rmtree(self.work.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Unlock the output folder; the parts of a stopped run are kept."""
        if self.work is not None and self.global_rank == 0 and not self.work.files():
            shutil.rmtree(self.work.folder, ignore_errors=True)
        self._lock.close()

    def _report(self, work: Pass) -> None:
        parts, entries = work.files(), [known["about"] for known in work.done.values()]
        about = results.Run(
            methods=list(self.evaluator.methods),
            categories=self.evaluator.categories,
            num_candidates=self.evaluator.num_candidates,
            preset=self.settings.preset,
            notes=self._notes(sum(entry["outside"] for entry in entries)),
            stages=self.classifier.stage_names,
        )
        with replacing(self.output / "records.csv") as merged:
            records.merge(records_in(parts), merged, self.metrics)
            table = results.table_of(about, partial(records.blocks, merged))
            reporting(self.output).touch()
            results.clear(self.output)  # do not mix results of an earlier run with new ones
        results.write(self.output, about, table, examples_in(parts, self.num_examples))
        print(tables.to_text(table))
        if self.presence_scores:
            scores = joined(presence_in(parts))
            write_text(self.output / presence.FILE, presence.to_csv(*scores, self.concepts))
            print(presence.to_text(self.output / presence.FILE, self.evaluator.categories))
            listed = presence.lists(*scores)
            write_text(self.output / presence.LISTS, csv_text([("method", "measure", "mean", "low", "high"), *listed]))
            print(presence.lists_to_text(listed))
        print(f"Results are in {self.output}.")
        for logger in self.loggers:
            logger.log_metrics(_flat(table))

    def _notes(self, outside: int) -> list[str]:
        """Notes that are printed with the table."""
        limit = self.trainer.limit_test_batches  # a number of batches, or 1.0
        counts = sorted({self.settings.masked_count(stage.channels) for stage in self.classifier.stages})
        notes = []
        if self._limited:
            notes.append(
                f"Not all photographs: at most {limit} batch(es) of each process were measured (`trainer.limit_test_batches`)."
            )
        if outside:
            notes.append(f"{outside} pair(s) left out: their label is not in the concept set of {len(self.concepts)}.")
        notes.append(results.EXPLANATION)
        notes.append(f"Preset: {self.settings.preset}. K = {', '.join(map(str, counts))}. Source: records.csv.")
        return notes + self._warning_of_narrow_stages()

    def _warning_of_narrow_stages(self) -> list[str]:
        """A note if more than a quarter of a stage is masked: its association then hardly depends on the concept."""
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


def _class_name(value: Any) -> str:
    """The qualified name of a class; other objects cannot be compared between runs."""
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError


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


def _is_numbered(data: Any) -> bool:
    """Whether an evaluation of the data can be resumed: it has ``num_batches``, ``identity()`` and ``counts()``."""
    return hasattr(data, "num_batches")
