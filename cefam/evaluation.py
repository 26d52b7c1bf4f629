"""RegionEvaluation, the LightningModule behind ``cefam evaluate``: many methods, one pass over the data."""

import csv
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn

from cefam.checks import check_precision, unstopped
from cefam.concepts import ConceptSet
from cefam.evaluator import PairValues, RegionBatch, RegionEvaluator
from cefam.explain import Derivative, Preset
from cefam.files import alone, whole
from cefam.impact import masked_count
from cefam.methods import (
    CEFAMRegions,
    CenterRegions,
    LuminanceRegions,
    RandomChannelRegions,
    RandomMapRegions,
    RegionMethod,
)
from cefam.module import CEFAM
from cefam.report import bootstrap, figures, records, tables
from cefam.report.examples import examples
from cefam.signals import held
from cefam.vlm import VisionLanguageModel

Chance = Literal["random_channel", "random_map", "center", "luminance"]
RESULTS = ("records.csv", "table.txt", "table.md", "table.csv", "differences.csv", "contact_sheet.png")
ALL_CHANCE: list[Chance] = ["random_channel", "random_map", "center", "luminance"]


class RegionEvaluation(L.LightningModule):
    """Measure a trained translator's regions beside chance, on photographs with masks.

    Writes ``table.txt``, ``table.md``, ``table.csv``, ``differences.csv``, ``records.csv`` (one line per pair, method and protocol) and
    ``contact_sheet.png`` into ``output``.

    Args:
        artefact: a folder of ``cefam export`` or a checkpoint of ``cefam fit``.
        output: folder for the results; it must not hold any, unless ``overwrite``.
        overwrite: replace results that are there.
        concepts: another concept set than the artefact's (name or file); needs ``vlm``.
        vlm: the VLM that the translator mimics; only for other concepts.
        chance: which chance rows stand beside CE-FAM.
        num_candidates: of the oracle (4 in Table 1, 1 for ImageNet-S); at most the number of stages.
        num_channels: K of the association.
        derivative: "total" or "branch".
        preset: "published", "paper", or ``None``: the artefact's.
        seed: of the random rows.
        memory_limit: megabytes for chunks of pairs.
        channel_share: K is at most this share of a stage's channels; ``None``: the artefact's.
        num_examples: rows of the contact sheet.
        methods: further rows by name: methods of your own (``class_path`` of a :class:`cefam.methods.RegionMethod`).
    """

    def __init__(
        self,
        artefact: str,
        output: str = "runs/evaluate",
        overwrite: bool = False,
        concepts: str | None = None,
        vlm: VisionLanguageModel | None = None,
        chance: list[Chance] = ALL_CHANCE,
        num_candidates: int = 4,
        num_channels: int = 20,
        derivative: Derivative = "total",
        preset: Preset | None = None,
        seed: int = 0,
        memory_limit: float = 1024.0,
        channel_share: float | None = None,
        num_examples: int = 8,
        methods: dict[str, RegionMethod] | None = None,
    ) -> None:
        super().__init__()
        self.output, self.overwrite = Path(output), overwrite
        self._alone = ExitStack()  # held while the output is written
        self._check_output()
        trained = CEFAM.from_pretrained(artefact, vlm=vlm)
        self.classifier, self.translator = trained.classifier, trained.translator
        self.concepts = _chosen(trained.concepts, concepts, vlm)
        self.preset: Preset = trained.preset if preset is None else preset
        self.cefam = CEFAMRegions(
            self.classifier,
            self.translator,
            self.concepts,
            derivative,
            num_channels,
            preset=self.preset,
            memory_limit=memory_limit,
            channel_share=trained.channel_share if channel_share is None else channel_share,
        )
        known: dict[str, RegionMethod] = {
            "random_channel": RandomChannelRegions(seed),
            "random_map": RandomMapRegions(seed),
            "center": CenterRegions(),
            "luminance": LuminanceRegions(),
        }
        taken = {"CE-FAM", *(name.replace("_", " ") for name in known)} & set(methods or {})
        if taken:
            raise ValueError(
                f"{', '.join(sorted(taken))} in `model.methods` is a row of its own: name yours otherwise."
            )
        rows: dict[str, RegionMethod] = {
            "CE-FAM": self.cefam,
            **(methods or {}),
            **{name.replace("_", " "): known[name] for name in chance},
        }
        # Those with weights of their own move to the device with everything else.
        self.networks = nn.ModuleList([method for method in rows.values() if isinstance(method, nn.Module)])
        # As many as CE-FAM has: a random map must not choose among four where CE-FAM has one stage.
        num_candidates = min(num_candidates, len(self.classifier.stages))
        self.evaluator = RegionEvaluator(rows, self.concepts, num_candidates, self.preset, memory_limit)
        self.num_examples = num_examples
        self.examples: list[figures.Example] = []
        self._part: Any = None  # this process's open part of the records
        self._outside: list[Tensor] = []  # pairs whose label is not in the concept set, counted on the device

    def _check_output(self) -> None:
        if not self.overwrite and any((self.output / name).exists() for name in RESULTS):
            raise FileExistsError(
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
            self._alone.enter_context(alone(self.output))
            self._check_output()
        self.trainer.strategy.barrier()  # nobody touches a folder that the first process was refused
        with held("records"):  # a signal between the two would leave a file that `discard` does not know
            self._part = self._part_path(self.global_rank).open("w", newline="", encoding="utf-8")

    def _part_path(self, rank: int) -> Path:
        return self.output / f".records-{rank:04d}.part"

    @unstopped
    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Measure all methods on a batch and write its records; no process waits for another here."""
        images = RegionBatch(**batch)
        output = self.classifier(images.image)
        found = self.evaluator.evaluate(images, output)
        self._outside.append(found.outside)
        csv.writer(self._part).writerows(
            records.rows_of(found, list(images.ids), self.evaluator.categories, self.concepts)
        )
        if self.global_rank == 0 and len(self.examples) < self.num_examples:
            self._keep_examples(images, found)

    def _keep_examples(self, batch: RegionBatch, found: PairValues) -> None:
        """Keep one pair of each category of this batch; which one depends on its name alone, not on its score."""
        keys = found.pairs.keys()
        rows = []
        for category in range(len(self.evaluator.categories)):
            among = (found.category == category).nonzero().squeeze(1)
            rows += among[keys[among].argsort()[:1]].tolist()
        if not rows:
            return
        picked = torch.tensor(rows, device=keys.device)
        masks = batch.masks[found.mask[picked]] == found.label[picked].view(-1, 1, 1)
        explainer, method = self.cefam.explainer, self.cefam
        encoding = explainer.encode(batch.image)
        self.examples += examples(
            explainer, encoding, found.pairs[picked], method.derivative, method.num_channels, masks
        )

    def on_test_epoch_end(self) -> None:
        """Merge the records of all processes, make the tables from them, and print the first."""
        self._part.close()
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
        """Remove this process's part of the records; after a run that failed, nobody else does."""
        if self._part is not None:
            with suppress(OSError):  # a full disk refuses to close it, too
                self._part.close()
            Path(self._part.name).unlink(missing_ok=True)
        self._alone.close()

    def _report(self, outside: int) -> None:
        limit = self.trainer.limit_test_batches  # a number of batches, or 1.0
        notes = [
            f"Not all photographs: at most {limit} batch(es) of each process were measured (`trainer.limit_test_batches`)."
            if isinstance(limit, int)
            else "",
            f"{outside} pair(s) left out: their label is not in the concept set of {len(self.concepts)}."
            if outside
            else "",
            "Undefined: the mask is empty or fills the image. Coverage: share of pairs whose concept the method can express.",
            f"Preset: {self.preset}. K = {self._masked_counts()}. Source: records.csv.",
        ]
        if len(self.classifier.stages) > 1:
            notes += self._warning_of_narrow_stages()
        for name in RESULTS:  # where they may be overwritten, none of an earlier run stays beside the new ones
            (self.output / name).unlink(missing_ok=True)
        with whole(self.output / "records.csv") as merged:
            records.merge([self._part_path(rank) for rank in range(self.trainer.world_size)], merged)
            table = tables.summarize(
                records.read(merged),
                self.evaluator.categories,
                self.evaluator.num_candidates,
                [note for note in notes if note],
                bootstrap.differences(records.read(merged)),
            )
            if not table.rows:
                raise ValueError(
                    "No pair was measured: none of the labels in the shards is a number of the concept set."
                )
        tables.write_tables(table, self.output)
        if self.examples:
            sheet = figures.contact_sheet(self.examples[: self.num_examples], self.classifier.stage_names)
            figures.save(sheet, self.output / "contact_sheet.png")
        print(tables.to_text(table))
        print(f"Results are in {self.output}.")
        for logger in self.loggers:
            logger.log_metrics(_flat(table))

    def _masked_counts(self) -> str:
        explainer = self.cefam.explainer
        counts = [
            masked_count(self.cefam.num_channels, explainer.channel_share, stage.channels)
            for stage in self.classifier.stages
        ]
        return ", ".join(map(str, sorted(set(counts))))

    def _warning_of_narrow_stages(self) -> list[str]:
        """A note where more than a quarter of a stage is masked: its association hardly depends on the concept."""
        share, most = self.cefam.explainer.channel_share, self.cefam.num_channels
        narrow = [s for s in self.classifier.stages if 4 * masked_count(most, share, s.channels) > s.channels]
        if not narrow:
            return []
        names = ", ".join(f"{stage.name} ({stage.channels})" for stage in narrow)
        return [
            f"Masking K = {most} channels is more than a quarter of stage(s) {names}: their association, and so the choice of "
            f"top-1, says little. Try a smaller `model.num_channels`, or `model.channel_share` 0.125."
        ]


def _chosen(stored: ConceptSet, name: str | None, vlm: VisionLanguageModel | None) -> ConceptSet:
    if name is None:
        return stored
    if vlm is None:
        raise ValueError(
            f"To measure the concepts {name!r} instead of the artefact's, set `model.vlm` to the VLM it mimics."
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
