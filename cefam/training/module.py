"""CEFAM, the LightningModule that trains and validates the translator between a frozen classifier and a frozen VLM."""

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self, Unpack

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, PearsonCorrCoef

from cefam.attribution.encoding import check_images
from cefam.attribution.explainer import Explainer
from cefam.attribution.scores import pool, similarity
from cefam.concepts.background import with_background
from cefam.concepts.sets import ConceptSet, embedded
from cefam.errors import CefamError
from cefam.evaluation.evaluator import PROTOCOLS, RegionEvaluator
from cefam.io.files import csv_text, write_text
from cefam.methods import CEFAMRegions, MethodContext
from cefam.metrics import METRICS
from cefam.pairs import RegionBatch
from cefam.settings import MethodSettings, SettingsChanges
from cefam.towers.classifier import FrozenClassifier
from cefam.towers.identity import CLASSIFIER_KEYS, VLM_KEYS, check_identity
from cefam.towers.vlm import VisionLanguageModel, encode_images
from cefam.trained import Trained
from cefam.training.schedule import PLATEAU_PATIENCE, WarmupPlateau, sgd
from cefam.training.trainer_checks import (
    check_epochs,
    check_finite,
    check_monitors,
    check_precision,
    check_resumed,
    described,
)
from cefam.translator import DistillationLosses, Translator, distillation_losses

TRAINING = ("train/loss", "train/embedding_loss", "train/similarity_loss")  # logged in training steps
MEANS = ("loss", "embedding_loss", "similarity_loss", "cosine")  # logged in validations, as "val/loss" ...


class CEFAM(L.LightningModule):
    """Train a translator between two frozen towers.

    Batches are dicts: ``{"image"}`` (B, 3, H, W) views, or ``{"pooled", "embedding"}`` from a feature cache. A second
    validation loader yields :class:`cefam.pairs.RegionBatch`.

    Args:
        classifier: the frozen classifier (in a config: ``class_path: cefam.load_classifier``).
        vlm: the teacher (in a config: ``class_path: cefam.load_vlm``, or a class of your own).
        concepts: "broden", "imagenet", "awa2", a .txt or .csv file, or a list of words; in Python also a ConceptSet.
        similarity_weight: lambda of eq. 8; 0 trains without L_sim (zero-shot with respect to the concepts).
        hidden_dims: hidden widths of the translator; ``None``: as in the published program.
        optimizer: called with the translator's parameters.
        warmup_epochs: see :class:`cefam.training.schedule.WarmupPlateau`.
        plateau_patience: in epochs; ``None``: the value of the preset (published 6, paper 4).
        num_candidates: number of candidates for the oracle in validation.
        text_cache: folder for text embeddings, or ``None``.
        background: name of a set whose concepts join fewer than 100 others, see :mod:`cefam.concepts.background`.
        settings: settings of the method, by name (:class:`cefam.settings.SettingsChanges`); stored in checkpoints.

    >>> from cefam import load_classifier, load_vlm
    >>> module = CEFAM(load_classifier("brodenette"), load_vlm("brodenette"), concepts="brodenette", channel_share=0.125)
    >>> batch = {"image": torch.rand(2, 3, 96, 96)}
    >>> module.log_dict = lambda *logged, **options: None  # without a Trainer
    >>> module.training_step(batch, 0).requires_grad
    True
    """

    text: Tensor
    val_means: Any  # ModuleDicts of metrics
    val_regions: Any

    def __init__(
        self,
        classifier: FrozenClassifier,
        vlm: VisionLanguageModel | None = None,
        concepts: str | list[Any] = "broden",
        similarity_weight: float = 0.001,
        hidden_dims: list[int] | None = None,
        optimizer: OptimizerCallable = sgd,
        warmup_epochs: int = 1,
        plateau_patience: int | None = None,
        num_candidates: int = 4,
        text_cache: str | None = None,
        background: str | None = None,
        **settings: Unpack[SettingsChanges],
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints hold only the translator
        if not isinstance(classifier, FrozenClassifier):
            raise CefamError(
                f"The classifier must be a FrozenClassifier, got a {type(classifier).__name__}: wrap it, "
                f"`FrozenClassifier(module, stages)`."
            )
        self.classifier, self.vlm = classifier, None if vlm is None else vlm.freeze()
        self._stored_vlm: dict[str, Any] | None = None
        self.settings = MethodSettings().changed(**settings)
        named = concepts if isinstance(concepts, ConceptSet) else ConceptSet.load(concepts)
        self.concepts = embedded(named if background is None else with_background(named, background), vlm, text_cache)
        text = self.concepts.require_embeddings()
        self.translator = Translator(classifier.channels, text.shape[1], hidden_dims)
        self.register_buffer("text", text, persistent=False)
        if not 0 <= similarity_weight < math.inf:
            raise CefamError(f"similarity_weight must be 0 (no similarity loss) or more, got {similarity_weight}.")
        self.similarity_weight = similarity_weight
        self.optimizer, self.warmup_epochs = optimizer, warmup_epochs
        patience = PLATEAU_PATIENCE[self.settings.preset]
        self.plateau_patience = patience if plateau_patience is None else plateau_patience
        # The context holds the translator itself, so validation measures its current state.
        context = MethodContext(Trained(classifier, self.translator, self.concepts, settings=self.settings))
        methods = {"CE-FAM": CEFAMRegions(context)}
        self.evaluator = RegionEvaluator(methods, self.concepts, num_candidates, self.settings)
        # Metric objects, because a mean of per-process means would give unequal shares equal weight. NaN losses are kept, so
        # that they stop the run.
        self.val_means = nn.ModuleDict({name: MeanMetric(nan_strategy="disable") for name in MEANS})
        self.val_correlation = PearsonCorrCoef(num_outputs=len(self.concepts))
        self.val_regions = nn.ModuleDict(
            {
                f"{protocol}_{name}": row.metric(self.evaluator.categories)
                for protocol in PROTOCOLS
                for name, row in METRICS.items()
            }
        )

    @property
    def trained(self) -> Trained:
        """The current translator with its classifier, concepts and settings."""
        return Trained(
            self.classifier, self.translator, self.concepts, self._vlm_identity, self.settings, self._training()
        )

    @property
    def _vlm_identity(self) -> dict[str, Any] | None:
        """Identity of the teacher; known even if the teacher is not loaded."""
        return self._stored_vlm if self.vlm is None else self.vlm.identity()

    @property
    def explainer(self) -> Explainer:
        """An explainer for the current translator."""
        return self.trained.explainer(self.vlm)

    @cached_property
    def _optimization(self) -> dict[str, Any]:
        """Optimizer and schedule in plain types, also before a Trainer has made them."""
        return described(self.configure_optimizers())

    def _training(self) -> dict[str, Any]:
        """Training options in plain types; a resumed run must have the same ones."""
        stop = None if self._trainer is None else self.trainer.early_stopping_callback
        return {
            "similarity_weight": self.similarity_weight,
            **self._optimization,
            "early_stopping.patience": getattr(stop, "patience", None),
        }

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The state of the translator only; the frozen towers are not stored."""
        prefix = f"{kwargs.get('prefix', '')}translator."
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name.startswith(prefix)}

    def configure_optimizers(self) -> Any:
        """The optimizer of the translator, and a warm-up and plateau schedule on the validation loss."""
        optimizer = self.optimizer(self.translator.parameters())
        scheduler = WarmupPlateau(optimizer, self.warmup_epochs, self.plateau_patience)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step schedules without a monitored value; the others are stepped at the end of validation.

        Lightning would step those after writing the epoch's checkpoint, and a resumed run would miss the step.
        """
        if metric is None:
            super().lr_scheduler_step(scheduler, metric)

    def _step_on_plateau(self, values: Mapping[str, Any]) -> None:
        """Step the schedules that monitor a value."""
        for config in self.trainer.lr_scheduler_configs:
            if config.reduce_on_plateau and (self.current_epoch + 1) % config.frequency == 0:
                schedule: Any = config.scheduler
                schedule.step(float(values[str(config.monitor)]))

    def setup(self, stage: str) -> None:
        """Check that features, mask labels and Trainer options match this module."""
        check_precision(self.trainer)
        check_epochs(self.trainer, stage)
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        self.concepts.check_labels(getattr(datamodule, "labels", []))
        for manifest in getattr(datamodule, "manifests", []):
            check_identity("classifier", manifest.classifier, self.classifier.identity(), CLASSIFIER_KEYS)
            if self._vlm_identity is not None:
                check_identity("vision-language model", manifest.vlm, self._vlm_identity, VLM_KEYS)

    @torch.no_grad()
    def _teacher_and_pooled(self, batch: Mapping[str, Any]) -> tuple[Tensor, list[Tensor]]:
        if "pooled" in batch:
            return batch["embedding"], list(batch["pooled"])
        if self.vlm is None:
            raise CefamError(
                "Training from images needs the vision-language model: set `model.vlm`, or train from features."
            )
        check_images(batch["image"], self.classifier)  # a custom data module may have normalized them
        pooled = [pool(activation.float()) for activation in self.classifier(batch["image"]).activations]
        return encode_images(self.vlm, batch["image"]).float(), pooled

    def _compared(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, DistillationLosses]:
        """The teacher's and the translator's embeddings, and the losses."""
        teacher, pooled = self._teacher_and_pooled(batch)
        scale, bias = self.concepts.logit_scale, self.concepts.logit_bias
        # Autocast is only for the towers: the translator is small, and the losses need single precision.
        with torch.autocast(teacher.device.type, enabled=False):
            student: Tensor = self.translator(pooled)
            losses = distillation_losses(student, teacher, self.text, scale, bias, self.similarity_weight)
        return teacher, student, losses

    def _scores(self, embedding: Tensor) -> Tensor:
        with torch.autocast(embedding.device.type, enabled=False):
            return similarity(embedding.float(), self.text, self.concepts.logit_scale, self.concepts.logit_bias)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """One step of eq. 8."""
        teacher, _, losses = self._compared(batch)
        logged = dict(zip(TRAINING, (losses.total, losses.embedding, losses.similarity), strict=True))
        self.log_dict(logged, batch_size=len(teacher))
        if "skipped" in batch:
            skipped = float(batch["skipped"])
            summed: dict[str, Any] = {"on_step": False, "on_epoch": True, "reduce_fx": "sum", "sync_dist": True}
            self.log("train/skipped", skipped, batch_size=1, **summed)
        return losses.total

    def on_before_backward(self, loss: Tensor) -> None:
        """Check the loss only in logged steps, because the check synchronizes with the device."""
        trainer: Any = self.trainer
        if self.global_step % max(1, trainer.log_every_n_steps) == 0:
            check_finite(self.trainer, "training", loss)

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics that Lightning does not reset."""
        for metric in (*self.val_means.values(), self.val_correlation, *self.val_regions.values()):
            metric.reset()

    def validation_step(self, batch: Mapping[str, Any] | RegionBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure losses and agreement with the teacher, or regions against masks, without process synchronization."""
        if isinstance(batch, RegionBatch):
            self._measure_regions(batch)
            return
        teacher, student, losses = self._compared(batch)
        cosine = nn.functional.cosine_similarity(student, teacher).mean()
        for name, value in zip(MEANS, (losses.total, losses.embedding, losses.similarity, cosine), strict=True):
            # One value per row instead of a weight: torchmetrics 1.9 ignores weights with nan_strategy="disable".
            self.val_means[name].update(value.expand(len(teacher)))
        self.val_correlation.update(self._scores(student), self._scores(teacher))

    def _measure_regions(self, batch: RegionBatch) -> None:
        measured = self.evaluator.evaluate(batch, self.classifier(batch.image))
        category = measured.found.category
        rows = (category >= 0).nonzero().squeeze(1)
        for protocol, values in measured.values["CE-FAM"].items():
            for name, value in values.metrics.items():
                metric = self.val_regions[f"{protocol}_{name}"]
                metric.update(category=category[rows], expressible=values.expressible[rows], value=value[rows])

    def on_validation_epoch_end(self) -> None:
        """Log means over all processes; processes without batches must take part too."""
        logged: dict[str, Any] = {f"val/{name}": metric.compute() for name, metric in self.val_means.items()}
        if self.trainer.state.fn == "fit":
            check_finite(self.trainer, "validation", logged["val/loss"])
        logged.update(self._correlations())
        for name, metric in self.val_regions.items():
            protocol, _, kind = name.partition("_")
            for key, value in metric.compute().items():
                if not value.isnan():  # a category without pairs
                    logged[f"regions/{protocol}/{kind}/{key}"] = value
        if self.trainer.state.fn == "fit":
            values = {**self.trainer.callback_metrics, **logged}
            check_monitors(self.trainer, [*values, *TRAINING])
            if not self.trainer.sanity_checking:
                self._step_on_plateau(values)
        # Already reduced over all processes.
        self.log_dict({name: value.float() for name, value in logged.items()}, sync_dist=False)

    def _correlations(self) -> dict[str, Tensor]:
        """Correlation of student and teacher scores: mean over all concepts, and over the concepts of each category.

        The values of all concepts in the last validation are written to ``concept_correlation.csv`` in the run's folder. A
        concept with constant teacher scores has NaN.
        """
        each = self.val_correlation.compute().reshape(-1)  # a scalar if there is only one concept
        folder = self.trainer.log_dir  # collective: all processes must call it
        if folder and self.trainer.is_global_zero and not self.trainer.sanity_checking:
            rows = [
                (c.number, c.word, c.category, v) for c, v in zip(self.concepts.concepts, each.tolist(), strict=True)
            ]
            text = csv_text([("number", "word", "category", "correlation"), *rows])
            write_text(Path(folder) / "concept_correlation.csv", text)
        categories: dict[str, list[int]] = {}
        for index, concept in enumerate(self.concepts.concepts):
            categories.setdefault(concept.category, []).append(index)
        means = {f"val/concept_correlation/{name}": each[rows].nanmean() for name, rows in categories.items()}
        return {"val/concept_correlation": each.nanmean(), **means}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description of the towers, concepts and settings, and the text embeddings."""
        checkpoint["cefam"] = self.trained.describe()
        checkpoint["cefam_text"] = self.concepts.require_embeddings().cpu()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint was made for the same classifier, VLM, concept set and, to resume it, training options."""
        trained = self.trained
        trained.check(checkpoint.get("cefam"))
        if self._trainer is not None and self._trainer.state.fn == "fit":
            check_resumed({**trained.settings.to_dict(), **trained.training}, checkpoint)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, classifier: FrozenClassifier | None = None, vlm: VisionLanguageModel | None = None
    ) -> Self:
        """Load a module for further training; to explain images, use :meth:`cefam.Trained.read`.

        Args:
            path: an exported folder, or a checkpoint.
            classifier: the classifier it was made for; ``None`` loads the one named in the artefact.
            vlm: the teacher.

        Raises:
            CefamError: if it is missing or damaged, or was made for another classifier or VLM.
        """
        trained = Trained.read(path, classifier)
        trained.check_vlm(vlm)
        weight = trained.training.get("similarity_weight", 0.001)
        given = (trained.classifier, vlm, trained.concepts, weight, trained.translator.hidden_dims)
        module = cls(*given, **trained.settings.to_dict())  # type: ignore[arg-type]
        module.translator.load_state_dict(trained.translator.state_dict())
        module._stored_vlm = trained.vlm_identity
        return module.eval()

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, **towers: Any) -> Self:  # type: ignore[override]
        """:meth:`from_pretrained`; ``towers`` are its ``classifier`` and ``vlm``."""
        return cls.from_pretrained(checkpoint_path, **towers)
