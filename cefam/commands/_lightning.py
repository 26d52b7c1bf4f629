"""The verbs that run a Trainer: LightningCLI with this method's defaults."""

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import cefam.callbacks
import cefam.datamodules  # noqa: F401  short class names in configs
from cefam.commands import _signals
from cefam.commands._options import OneSentence, expand_home
from cefam.commands._runs import RunIdentity
from cefam.datamodules import RegionsData
from cefam.errors import CefamError, ExistsError
from cefam.evaluation.module import RegionEvaluation
from cefam.io.reading import read_text
from cefam.methods import RegionMethod
from cefam.trained import read_stored
from cefam.training.module import CEFAM
from cefam.training.trainer_checks import better_when


class Parser(OneSentence, LightningArgumentParser):
    """Lightning's parser, with errors in one sentence."""

    bases = (L.LightningDataModule, L.Callback, RegionMethod)


class SaveConfig(SaveConfigCallback):
    """Save the parsed config in the run's folder, and give it to the loggers as hyperparameters."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save only if there is a logger; without one, the config would be written to the working directory."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Log the config as hyperparameters; called on rank 0, after the files are written."""
        for logger in trainer.loggers:
            logger.log_hyperparams(self.config.as_dict())


class EndTogether(L.Callback):
    """End the other processes of this machine when this one fails or is stopped: they may be waiting for it."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace the Trainer's SIGTERM handler, whose broadcast hangs if other processes are in another collective."""
        _signals.take_back()

    on_validation_start = on_test_start = on_train_start

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Terminate the other processes on any exception, including signals, before Lightning cleans up."""
        children = getattr(trainer.strategy.launcher, "procs", [])
        for child in children:
            child.terminate()
        children.clear()  # otherwise Lightning's observer kills this process once one of them has ended


class _CLI(LightningCLI):
    """Base class of the verbs that run a Trainer."""

    callbacks: Sequence[L.Callback] = ()

    def __init__(self, verb: str, model: type[L.LightningModule], **kwargs: Any) -> None:
        self.verb = verb
        super().__init__(
            model,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_class=Parser,
            trainer_defaults={"callbacks": [EndTogether(), *self.callbacks]},
            **kwargs,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and expand a leading ~ in all values, including those from configs."""
        super().parse_arguments(parser, args)
        expand_home(self.config)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set this method's defaults of the Trainer."""
        parser.set_defaults(
            {
                "trainer.inference_mode": False,  # regions are gradients
                "trainer.logger": {
                    "class_path": "lightning.pytorch.loggers.CSVLogger",
                    "init_args": {"save_dir": "runs", "name": self.verb},
                },
            }
        )


class _FitCLI(_CLI):
    """``cefam fit`` and ``cefam validate``."""

    def __init__(self, verb: str, model: type[L.LightningModule], **kwargs: Any) -> None:
        self.identity = RunIdentity()
        # `save_last` of the other checkpoint saves only along with a new best; a killed run must not lose later epochs.
        self.last = ModelCheckpoint(filename="last", enable_version_counter=False)
        self.callbacks = [self.identity, self.last]
        super().__init__(verb, model, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer's methods that are available as verbs."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add early stopping (10 epochs) and checkpoints by the total validation loss, as in the published program."""
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "trainer.max_epochs": 150,
                "early_stopping.monitor": "val/loss",
                "early_stopping.patience": 10,
                "early_stopping.min_delta": 0.0,
                "early_stopping.check_on_train_epoch_end": False,  # check after validation, which max_steps may skip
                "checkpoint.monitor": "val/loss",
                "checkpoint.filename": "best",
                "checkpoint.auto_insert_metric_name": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check the checkpoint before anything else reads it; set "min" or "max" according to the monitored metric."""
        super().parse_arguments(parser, args)
        options = self.config[self.config.subcommand]
        for follower in (options.get("checkpoint"), options.get("early_stopping")):
            if follower is not None:  # Lightning's default is "min", whatever is monitored
                follower.mode = better_when(str(follower.monitor)) or follower.mode
        checkpoint = str(options.get("ckpt_path") or "")
        if not checkpoint:
            return
        if checkpoint == "last" and self.config.subcommand == "fit":
            return  # Lightning resumes if there is a checkpoint, and otherwise starts a new run
        if Path(checkpoint).is_dir():
            raise CefamError(f"{checkpoint} is a folder: name a .ckpt of `cefam fit`, with the state of its training.")
        read_stored(checkpoint)

    def before_fit(self) -> None:
        """Reject a folder that holds another run, whose checkpoints would be mistaken for this run's."""
        self._check_data()
        folder, resumed = self.trainer.log_dir, self._resumed()
        for callback in self.trainer.checkpoint_callbacks:
            taken = getattr(callback, "dirpath", None)
            if taken and list(Path(taken).glob("*.ckpt")) and not resumed:
                raise ExistsError(
                    f"{taken} already holds checkpoints: name another `checkpoint.dirpath`, or remove them."
                )
        if folder and (Path(folder) / "checkpoints").is_dir() and not resumed:
            raise ExistsError(
                f"{folder} already holds a run: name another folder for the logger, resume it with `--ckpt_path`, or remove it."
            )
        self.last.dirpath = getattr(self.trainer.checkpoint_callbacks[0], "dirpath", None)
        self.identity.begin(self.trainer, resumed)
        metrics = Path(folder or ".") / "metrics.csv"
        if folder and metrics.is_file() and self.trainer.is_global_zero:
            # The logger starts a new file, so the existing log is renamed.
            number = len(list(metrics.parent.glob("metrics-until-*.csv"))) + 1
            metrics.rename(metrics.with_name(f"metrics-until-{number}.csv"))

    def after_fit(self) -> None:
        """Print where the checkpoint is, how well the translator agrees with its teacher, and what to do next."""
        best = self.trainer.checkpoint_callback
        path = getattr(best, "best_model_path", "") or getattr(best, "last_model_path", "")
        if not path or not self.trainer.is_global_zero:
            return
        score, cosine = getattr(best, "best_model_score", None), self.trainer.callback_metrics.get("val/cosine")
        reached = "" if score is None else f" ({best.monitor} {float(score):.4g})"  # type: ignore[union-attr]
        agreement = "" if cosine is None else f" Cosine with the teacher at the last epoch: {float(cosine):.2f} of 1."
        print(f"The best checkpoint is {path}{reached}.{agreement}")
        print(f"Next: cefam explain PHOTOGRAPH --artefact {path}")

    def _resumed(self) -> str | None:
        """The checkpoint to resume from: the given one, or the one saved on SLURM's warning, which Lightning loads."""
        left = sorted(Path(self.trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
        return self.config.fit.ckpt_path or (str(left[-1]) if left else None)

    def before_validate(self) -> None:
        """Reject validation of untrained weights, and overwriting the log of a run."""
        self._check_data()
        if not self.config.validate.ckpt_path:
            raise CefamError(
                "Name the checkpoint to validate with `--ckpt_path`; without one the translator is random."
            )
        refuse_logged(self.trainer)

    def _check_data(self) -> None:
        if self.datamodule is None:
            raise CefamError(
                "No data is named: set `--data` to FeaturesData or ImagesData, or take a config that does (`--config train/features`)."
            )

    def instantiate_classes(self) -> None:
        """Record the loading options of towers of user-defined classes, in plain types, for the checkpoint."""
        model = self.config[self.config.subcommand].model
        sources = {kind: model[kind].as_dict() for kind in ("classifier", "vlm") if model.get(kind) is not None}
        super().instantiate_classes()
        for kind, source in sources.items():
            tower = getattr(self.model, kind)
            if tower.source is None:
                tower.source = source


def refuse_logged(trainer: L.Trainer) -> None:
    """Reject a logger's folder that holds the log of a run, which would be overwritten."""
    folder = trainer.log_dir
    if folder and (Path(folder) / "metrics.csv").is_file():
        raise ExistsError(f"{folder} already holds the log of a run: name another folder for `trainer.logger`.")


def _is_not_a_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in str(record.msg)


def quiet() -> None:
    """Silence expected warnings and messages that do not concern the user."""
    for expected in (
        "LightningCLI's args parameter",  # the commands have already resolved shipped configs
        r"Found \d+ module\(s\) in eval mode",  # the frozen towers
        r".*isinstance\(treespec, LeafSpec\)",  # Lightning 2.6 on torch 2.15
        "Experiment logs directory .* exists and is not empty",  # `before_fit` refuses another run's, and renames its own
        "The ``compute`` method of metric .* was called before",  # a process may have no pairs in an epoch
    ):
        warnings.filterwarnings("ignore", message=expected)
    logging.raiseExceptions = False  # a signal that interrupts a log call is not a logging error
    logging.getLogger("lightning").propagate = False  # open_clip adds a handler to the root logger: no duplicate lines
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_not_a_tip)


def _towers_of_model(argument: str) -> list[str]:
    """Options in place of a config of `cefam features`, which names ``classifier`` and ``vlm`` alone; others are unchanged."""
    option, _, path = argument.partition("=")
    content = yaml.safe_load(read_text(Path(path))) if option == "--config" else None
    if not content or not set(content) <= {"classifier", "vlm"}:
        return [argument]
    return [f"--model.{tower}={json.dumps(value)}" for tower, value in content.items()]


def run_trainer(verb: str, arguments: list[str]) -> None:
    """Run ``fit`` or ``validate`` with these options; a config of `cefam features` names the model's towers."""
    quiet()
    arguments = [each for argument in arguments for each in _towers_of_model(argument)]
    _FitCLI(verb, CEFAM, subclass_mode_data=True, args=[verb, *arguments], parser_kwargs={"prog": "cefam"})


def run_evaluation(arguments: list[str]) -> None:
    """Run ``evaluate`` with these options."""
    quiet()
    options = {"prog": "cefam evaluate"}
    cli = _CLI(
        "evaluate", RegionEvaluation, datamodule_class=RegionsData, run=False, args=arguments, parser_kwargs=options
    )
    refuse_logged(cli.trainer)
    try:
        cli.trainer.test(cli.model, datamodule=cli.datamodule)
    finally:
        cli.model.close()
