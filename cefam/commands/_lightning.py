"""The verbs that run a Trainer: LightningCLI with the defaults that this method needs."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
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
from cefam.methods import RegionMethod
from cefam.trained import read_stored
from cefam.training.module import CEFAM
from cefam.training.trainer_checks import better_when


class Parser(OneSentence, LightningArgumentParser):
    """Lightning's, with errors in one sentence."""

    bases = (L.LightningDataModule, L.Callback, RegionMethod)


class SaveConfig(SaveConfigCallback):
    """Save the parsed config in the run's folder, and give it to the loggers as hyperparameters."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save where there is a run's folder; without a logger it would be the folder that the user stands in."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called on the first process, after the files."""
        for logger in trainer.loggers:
            logger.log_hyperparams(self.config.as_dict())


class EndTogether(L.Callback):
    """End the other processes of this machine when this one fails or is stopped: they may be waiting for it."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The Trainer's handler of SIGTERM broadcasts, which hangs where the other processes are in another collective."""
        _signals.take_back()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As above."""
        _signals.take_back()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """As above."""
        _signals.take_back()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Called for every exception, signals included, before Lightning tidies up."""
        children = getattr(trainer.strategy.launcher, "procs", [])
        for child in children:
            child.terminate()
        children.clear()  # Lightning's observer would kill this process, too, as soon as one of them has ended


class _CLI(LightningCLI):
    """What all verbs share."""

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
        """Parse; a leading ~ is the user's home, in configs, too."""
        super().parse_arguments(parser, args)
        expand_home(self.config)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set what this method needs of a Trainer."""
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
        # `save_last` of the other one writes when it writes the best; a run that is killed must not lose the epochs since.
        self.last = ModelCheckpoint(filename="last", enable_version_counter=False)
        self.callbacks = [self.identity, self.last]
        super().__init__(verb, model, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer's methods that are verbs here."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the early stop and the checkpoint of the published program: the best total validation loss, 10 epochs."""
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "trainer.max_epochs": 150,
                "early_stopping.monitor": "val/loss",
                "early_stopping.patience": 10,
                "early_stopping.min_delta": 0.0,
                "early_stopping.check_on_train_epoch_end": False,  # after the validation, of which there may be none (max_steps)
                "checkpoint.monitor": "val/loss",
                "checkpoint.filename": "best",
                "checkpoint.auto_insert_metric_name": False,
            }
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check the checkpoint to start from before anything else reads it; a value of ours is followed in its own direction."""
        super().parse_arguments(parser, args)
        options = self.config[self.config.subcommand]
        for follower in (options.get("checkpoint"), options.get("early_stopping")):
            if follower is not None:  # Lightning's default is "min", whatever is monitored
                follower.mode = better_when(str(follower.monitor)) or follower.mode
        checkpoint = str(self.config[self.config.subcommand].get("ckpt_path") or "")
        if not checkpoint:
            return
        if checkpoint == "last" and self.config.subcommand == "fit":
            return  # Lightning resumes if there is a checkpoint, and starts afresh if not
        if Path(checkpoint).is_dir():
            raise CefamError(f"{checkpoint} is a folder: name a .ckpt of `cefam fit`, with the state of its training.")
        read_stored(checkpoint)

    def before_fit(self) -> None:
        """Refuse a folder that holds a finished run: its checkpoint would be taken for this one's.

        Raises:
            CefamError: where no data is named.
            ExistsError: where the folder is taken and the run is not resumed.
        """
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
            # The logger starts a new file; what the run has logged so far is kept under another name.
            number = len(list(metrics.parent.glob("metrics-until-*.csv"))) + 1
            metrics.rename(metrics.with_name(f"metrics-until-{number}.csv"))

    def _resumed(self) -> str | None:
        """The checkpoint that the run goes on from: the one that is named, or the one that SLURM's warning left (Lightning takes it)."""
        left = sorted(Path(self.trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
        return self.config.fit.ckpt_path or (str(left[-1]) if left else None)

    def before_validate(self) -> None:
        """Refuse to validate untrained weights, and to overwrite the log of a run.

        Raises:
            CefamError: where no checkpoint is named.
            ExistsError: where the logger's folder holds a run.
        """
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

    def before_instantiate_classes(self) -> None:
        """Keep how the towers are loaded, in plain types, for the checkpoint."""
        model = self.config[self.config.subcommand].model
        self._sources = {kind: model[kind].as_dict() for kind in ("classifier", "vlm") if model.get(kind) is not None}

    def instantiate_classes(self) -> None:
        """Record how towers of the user's own classes were loaded."""
        super().instantiate_classes()
        for kind, source in self._sources.items():
            tower = getattr(self.model, kind)
            if tower.source is None:
                tower.source = source


def refuse_logged(trainer: L.Trainer) -> None:
    """Refuse a logger's folder that holds the log of a run: it would be written over.

    Raises:
        ExistsError: with the folder.
    """
    folder = trainer.log_dir
    if folder and (Path(folder) / "metrics.csv").is_file():
        raise ExistsError(f"{folder} already holds the log of a run: name another folder for `trainer.logger`.")


def _is_not_a_tip(record: logging.LogRecord) -> bool:
    return "Tip:" not in str(record.msg)


def quiet() -> None:
    """Silence what is expected of a run and means nothing to its user."""
    for expected in (
        "LightningCLI's args parameter",  # the commands have looked up the shipped configs in them
        r"Found \d+ module\(s\) in eval mode",  # the frozen towers
        r".*isinstance\(treespec, LeafSpec\)",  # Lightning 2.6 on torch 2.15
        "The ``compute`` method of metric .* was called before",  # a process may see no pair in an epoch
    ):
        warnings.filterwarnings("ignore", message=expected)
    logging.raiseExceptions = False  # a signal in the middle of a line of the log is no error of the log
    logging.getLogger("lightning").propagate = False  # it prints by itself; open_clip makes the root logger print, too
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_not_a_tip)


def run_trainer(verb: str, arguments: list[str]) -> None:
    """Run ``fit`` or ``validate`` with these options."""
    quiet()
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
