"""RegionEvaluation, the LightningModule behind ``cefam evaluate``: many methods, one pass over the data."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Unpack, runtime_checkable

import lightning as L
from torch import nn

from cefam.checks import check_precision, runs_to_its_end
from cefam.concepts import ConceptSet
from cefam.errors import CefamError, ExistsError
from cefam.evaluator import LabeledPairs, RegionEvaluator
from cefam.files import locked, replacing, write_text
from cefam.identity import identity
from cefam.methods import (
    Bench,
    CEFAMRegions,
    CenterRegions,
    LuminanceRegions,
    MethodFactory,
    RandomChannelRegions,
    RandomMapRegions,
)
from cefam.methods.neurons import NeuronRegions
from cefam.pairs import RegionBatch
from cefam.passes import require_shared
from cefam.presence import joined, presence_scores
from cefam.probe import Probe
from cefam.report import examples, presence, records, results, tables
from cefam.report.parts import Parts
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


@runtime_checkable
class Resumable(Protocol):
    """Data whose batches have numbers, and that can leave out those that are ``done``."""

    done: Collection[int]
    num_batches: int

    def identity(self) -> Any:
        """What makes its batches others, in plain types."""

    def counts(self) -> str:
        """How much there is, in words that end with the number of batches."""


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
        self.parts = Parts(self.output)
        self._lock, self._begun = ExitStack(), False  # held while the output is written
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
        # What the folders hold that the options only name.
        self.inputs = [bench.probe, *(row.associations for row in rows.values() if isinstance(row, NeuronRegions))]
        # Methods with weights move to the device with this module.
        self.networks = nn.ModuleList([method for method in rows.values() if isinstance(method, nn.Module)])
        # As many as CE-FAM has: a random map must not choose among four where CE-FAM has one stage.
        num_candidates = min(num_candidates, len(self.classifier.stages))
        self.evaluator = RegionEvaluator(rows, self.concepts, num_candidates, self.settings, metrics)
        self.num_examples, self.metrics, self.reproduces = num_examples, tuple(metrics), list(reproduces)
        self.presence_scores = presence_scores
        self.measured = False  # whether there was anything to measure
        self.options: Any = None  # of the run, in plain types: a stopped one with the same options goes on

    def _check_output(self) -> None:
        there = any((self.output / name).exists() for name in results.FILES)
        if there and not self.overwrite and not self.parts.reporting.exists():
            raise ExistsError(
                f"{self.output} already holds results: name another `model.output`, or set `model.overwrite`."
            )

    def setup(self, stage: str) -> None:
        """Refuse what cannot be measured, lock the output, and leave out the batches that a stopped run has measured."""
        check_precision(self.trainer)
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        self.concepts.check_labels(getattr(datamodule, "labels", []))
        self.measured = False
        if self.global_rank == 0:
            self.output.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(locked(self.output))
            self._check_output()
            self.parts.begin(self._run(datamodule))
            self._begun = True
        self.trainer.strategy.barrier()  # no process touches the folder before the first one has checked it
        require_shared(self.output)
        done = self.parts.done()
        self.trainer.strategy.barrier()  # nor writes before all have seen what is there
        if isinstance(datamodule, Resumable):
            datamodule.done = done
            if self.global_rank == 0:
                finished = f"; {len(done)} of them are measured already" if done else ""
                print(f"{datamodule.counts()} for {self.trainer.world_size} process(es){finished}.")

    def _run(self, datamodule: Any) -> Any:
        """What makes an evaluation another one; ``None``: it cannot be told."""
        if self.options is None or self._limited or not isinstance(datamodule, Resumable):
            return None
        networks = {"classifier": self.classifier, "translator": self.translator, "vlm": self.vlm}
        settings = {"settings": self.settings.to_dict(), "options": self.options}
        return identity(**networks, concepts=self.concepts, **settings, inputs=self.inputs, data=datamodule.identity())

    @runs_to_its_end
    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Measure all methods on a batch and write its part; no process waits for another here."""
        images = RegionBatch(**batch)
        number = images.number if images.number >= 0 else batch_idx * self.trainer.world_size + self.global_rank
        found = self.evaluator.find(images)
        # Every batch has an example, or none: those of the first batches are enough.
        keep = self._chosen_examples(found) if number < self.num_examples else []
        output = self.classifier(images.image)
        measured = self.evaluator.evaluate(images, output, found, keep)
        presence = presence_scores(self.evaluator, images, output, found) if self.presence_scores else {}
        rows = records.rows_of(measured, images.ids, self.evaluator.categories, self.concepts, self.metrics)
        kept = examples.of_pairs(images, measured, keep, self.concepts, self.classifier.stage_names) if keep else []
        self.parts.write(number, rows, int(found.outside), presence, kept)

    def _chosen_examples(self, found: LabeledPairs) -> list[int]:
        """One pair of each category of a batch; which one depends on its name alone, not on its score."""
        keys, rows = found.pairs.keys(), []
        for category in range(len(self.evaluator.categories)):
            among = (found.category == category).nonzero().squeeze(1)
            rows += among[keys[among].argsort()[:1]].tolist()
        return sorted(rows)

    @property
    def _limited(self) -> bool:
        """Whether only some of the batches are to be measured: a number of them (Lightning refuses a share of such data)."""
        return isinstance(self.trainer.limit_test_batches, int)

    def on_test_epoch_end(self) -> None:
        """Make the report from the parts of all processes; the first one makes it, and the others do not wait for it.

        Raises:
            CefamError: where parts are missing.
        """
        self.trainer.strategy.barrier()
        done = len(self.parts.done())
        self.measured = done > 0
        self.trainer.strategy.barrier()  # the parts are counted by all before the first process removes them
        data: Any = getattr(self.trainer, "datamodule", None)
        if isinstance(data, Resumable) and not self._limited and done < data.num_batches:
            raise CefamError(
                f"{done} of {data.num_batches} batches are in {self.output}: run the same command again, which measures the others. On "
                f"several nodes `model.output` must lie on a disk that all of them share."
            )
        if self.trainer.is_global_zero and self.measured:
            self._report()
            self.parts.clear()
        self.close()

    def close(self) -> None:
        """Let others write into the output; what a stopped run has measured stays there."""
        if self._begun and not self.parts.done():
            self.parts.clear()
        self._lock.close()

    def _report(self) -> None:
        about = results.Run(
            methods=list(self.evaluator.methods),
            categories=self.evaluator.categories,
            num_candidates=self.evaluator.num_candidates,
            preset=self.settings.preset,
            notes=self._notes(self.parts.outside()),
            reproduces=self.reproduces,
            stages=self.classifier.stage_names,
        )
        with replacing(self.output / "records.csv") as merged:
            records.merge(self.parts.records(), merged, self.metrics)
            table = results.table_of(about, merged)
            self.parts.reporting.touch()
            results.clear(self.output)  # results of an earlier run must not stay with the new ones
        results.write(self.output, about, table, self.parts.examples(self.num_examples))
        print(tables.to_text(table))
        if self.presence_scores:
            scores = joined(self.parts.presence())
            write_text(self.output / presence.FILE, presence.to_csv(*scores, self.concepts))
            print(presence.to_text(self.output / presence.FILE, self.evaluator.categories))
        print(f"Results are in {self.output}.")
        for logger in self.loggers:
            logger.log_metrics(_flat(table))

    def _notes(self, outside: int) -> list[str]:
        """What a reader of the table must know."""
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
