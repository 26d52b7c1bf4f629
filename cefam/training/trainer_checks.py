"""Checks for Trainer options that silently change the result."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import LearningRateFinder
from torch import Tensor

from cefam.errors import CefamError, near
from cefam.training.schedule import WarmupPlateau


def check_epochs(trainer: L.Trainer, stage: str) -> None:
    """Check that the Trainer runs training and validation batches, and validates exactly once per epoch."""
    if stage == "validate" and trainer.limit_val_batches == 0:
        raise CefamError("Without validation batches nothing is measured: set `trainer.limit_val_batches` above 0.")
    if stage != "fit":
        return
    if 0 in (trainer.limit_train_batches, trainer.limit_val_batches, trainer.max_epochs, trainer.max_steps):
        raise CefamError(
            "Without training or validation batches nothing is learned: the learning rate, the early stop and the best checkpoint "
            "follow the validation. Set `trainer.limit_train_batches`, `trainer.limit_val_batches`, `trainer.max_epochs` and "
            "`trainer.max_steps` above 0."
        )
    if any(isinstance(callback, LearningRateFinder) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise CefamError(
            "LearningRateFinder sets a rate of the model, and the rate here belongs to the optimizer: try values of "
            "`model.optimizer.lr` instead."
        )
    if (trainer.check_val_every_n_epoch, trainer.val_check_interval) != (1, 1.0):
        raise CefamError(
            "The learning rate and the early stop count epochs by their validations: leave `trainer.check_val_every_n_epoch` at 1 and "
            "`trainer.val_check_interval` at 1.0."
        )


def check_monitors(trainer: L.Trainer, logged: Iterable[str]) -> None:
    """Check that early stopping, checkpoints and schedules monitor logged values, in the right direction."""
    known = list(logged)
    following: list[tuple[str, Any, Any]] = [
        ("early_stopping", each, getattr(each, "monitor", None)) for each in trainer.early_stopping_callbacks
    ]
    following += [("checkpoint", each, getattr(each, "monitor", None)) for each in trainer.checkpoint_callbacks]
    following += [
        ("lr_scheduler", each.scheduler, each.monitor)
        for each in trainer.lr_scheduler_configs
        if each.reduce_on_plateau
    ]
    for option, follower, monitor in following:
        if monitor is None:
            continue
        if monitor not in known:
            raise CefamError(f"`{option}.monitor` is {monitor!r}, which is not logged.{near(monitor, known)}")
        mode, right = getattr(follower, "mode", None), better_when(monitor)
        if right is not None and mode != right:
            raise CefamError(
                f"`{option}.monitor` is {monitor!r}, which is better when it is {'higher' if right == 'max' else 'lower'}, and "
                f"`{option}.mode` is {mode!r}: set it to {right!r}."
            )


def better_when(name: str) -> str | None:
    """Whether a logged value is better if higher ("max") or lower ("min"); ``None`` if cefam does not log it.

    >>> better_when("val/cosine"), better_when("train/loss"), better_when("lr-SGD")
    ('max', 'min', None)
    """
    if name.startswith(("val/cosine", "val/concept_correlation", "regions/")):
        return "max"
    return "min" if name.startswith(("val/", "train/")) else None


def described(configured: Any) -> dict[str, Any]:
    """The optimizer and the schedule that ``configure_optimizers`` returned, in plain types."""
    if isinstance(configured, Mapping):
        optimizer, scheduler = configured["optimizer"], configured.get("lr_scheduler")
    elif isinstance(configured, tuple) and isinstance(configured[0], list):
        optimizer, scheduler = configured[0][0], (*configured[1], None)[0]
    else:
        optimizer, scheduler = (configured[0] if isinstance(configured, list | tuple) else configured), None
    scheduler = scheduler.get("scheduler") if isinstance(scheduler, Mapping) else scheduler
    defaults = {k: list(v) if isinstance(v, tuple) else v for k, v in optimizer.defaults.items()}
    found = {"optimizer": type(optimizer).__name__, **{f"optimizer.{name}": value for name, value in defaults.items()}}
    if isinstance(scheduler, WarmupPlateau):
        # torch decays when the count exceeds its patience, the published program when it reaches it.
        return {**found, "warmup_epochs": scheduler.warmup_epochs, "plateau_patience": scheduler.patience + 1}
    state = {} if scheduler is None else scheduler.state_dict()
    moving = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter")  # progress, not options
    plain = {k: v for k, v in state.items() if isinstance(v, bool | int | float | str) and k not in moving}
    return {
        **found,
        "lr_scheduler": None if scheduler is None else type(scheduler).__name__,
        **{f"lr_scheduler.{name}": value for name, value in plain.items() if not name.startswith("_")},
    }


def check_precision(trainer: L.Trainer) -> None:
    """Reject precisions that would round weights and regions; autocast is only used for the towers."""
    if str(trainer.precision) not in ("32-true", "bf16-mixed", "16-mixed"):
        raise CefamError(
            f"The precision {trainer.precision!r} would round regions and metrics, too: set `trainer.precision` to 32-true, "
            f"bf16-mixed or 16-mixed."
        )


def check_resumed(asked: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Check that a resumed run has its original options; others would be ignored, or change the run midway."""
    if not checkpoint.get("optimizer_states"):
        raise CefamError(
            "This checkpoint holds weights alone, not the state of the training: resume from one that was not saved with "
            "`checkpoint.save_weights_only`."
        )
    stored = {**checkpoint["cefam"]["settings"], **checkpoint["cefam"]["training"]}
    for name in sorted(stored.keys() | asked.keys()):
        if name != "memory_limit" and stored.get(name) != asked.get(name):
            raise CefamError(
                f"The checkpoint was trained with {name} = {stored.get(name)}, and this run asks for {asked.get(name)}: a resumed run "
                f"goes on as it began. Leave it as it was, or start a new run."
            )


def check_finite(trainer: L.Trainer, name: str, loss: Tensor) -> None:
    """Raise an error for a non-finite loss, before a checkpoint with invalid weights replaces a good one."""
    value = float(loss.detach())
    if not math.isfinite(value):
        when = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
        raise CefamError(
            f"The {name} loss became {value} in {when}: the checkpoints written before are kept. Try a smaller `model.optimizer.lr`, and "
            f"look for NaN in the features."
        )
