"""What a run of the Trainer is refused for: what would be learned or measured otherwise than asked, in silence."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import lightning as L

from cefam import artefact

P = ParamSpec("P")
R = TypeVar("R")


def unstopped(step: Callable[P, R]) -> Callable[P, R]:
    """A step that runs to its end, or fails.

    A Trainer would take StopIteration for the end of the data and leave out the rest, and exit(0) would look like success.
    """

    @wraps(step)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return step(*args, **kwargs)
        except (StopIteration, SystemExit) as error:
            raise RuntimeError(
                f"{type(error).__name__} was raised in the middle of a step: look for a bare `next()`, or an `exit()`."
            ) from error

    return run


def check_epochs(trainer: L.Trainer, stage: str) -> None:
    """Refuse a Trainer that would do nothing, or validate at other times than once an epoch.

    Raises:
        ValueError: with what to set instead.
    """
    if stage == "validate" and trainer.limit_val_batches == 0:
        raise ValueError("Without validation batches nothing is measured: set `trainer.limit_val_batches` above 0.")
    if stage != "fit":
        return
    if 0 in (trainer.limit_train_batches, trainer.limit_val_batches, trainer.max_epochs, trainer.max_steps):
        raise ValueError(
            "Without training or validation batches nothing is learned: the learning rate, the early stop and the best checkpoint "
            "follow the validation. Set `trainer.limit_train_batches`, `trainer.limit_val_batches`, `trainer.max_epochs` and "
            "`trainer.max_steps` above 0."
        )
    if (trainer.check_val_every_n_epoch, trainer.val_check_interval) != (1, 1.0):
        raise ValueError(
            "The learning rate and the early stop count epochs by their validations: leave `trainer.check_val_every_n_epoch` at 1 and "
            "`trainer.val_check_interval` at 1.0."
        )


def check_precision(trainer: L.Trainer) -> None:
    """Refuse a precision that would round the weights and the mathematics of regions; autocast is for the towers alone.

    Raises:
        ValueError: with what to set instead.
    """
    if str(trainer.precision) not in ("32-true", "bf16-mixed", "16-mixed"):
        raise ValueError(
            f"The precision {trainer.precision!r} would run regions and metrics in it, too: set `trainer.precision` to 32-true, "
            f"bf16-mixed or 16-mixed."
        )


def check_resumed(module: Any, checkpoint: Mapping[str, Any]) -> None:
    """Refuse to go on otherwise than a checkpoint began: it brings the state of its training along, and what is asked for would be lost.

    Args:
        module: a :class:`cefam.module.CEFAM` in a Trainer.
        checkpoint: as Lightning has read it, made for this module.

    Raises:
        ValueError: with the first option that differs, or where the checkpoint holds weights alone.
    """
    if not checkpoint.get("optimizer_states"):
        raise ValueError(
            "This checkpoint holds weights alone, no state of the training: resume from one that was not saved with "
            "`checkpoint.save_weights_only`."
        )
    new: Any = module.configure_optimizers()
    optimizer, schedule = new["optimizer"], new["lr_scheduler"]["scheduler"]
    asked = _training(type(optimizer).__name__, optimizer.state_dict(), schedule.state_dict())
    stored = _training(
        checkpoint.get("cefam_optimizer"), checkpoint["optimizer_states"][0], checkpoint["lr_schedulers"][0]
    )
    asked |= artefact.describe(module)["settings"]
    stored |= checkpoint["cefam"]["settings"]
    for callback in module.trainer.early_stopping_callbacks:
        state = checkpoint["callbacks"].get(callback.state_key)
        if state:
            asked["early_stopping.patience"] = getattr(callback, "patience", None)
            stored["early_stopping.patience"] = state["patience"]
    for name, value in asked.items():
        if name in stored and stored[name] != value:
            raise ValueError(
                f"The checkpoint was trained with {name} = {stored[name]}, and {value} is asked for now: a resumed run goes on as it "
                f"began. Leave it as it was, or start a new run."
            )


def _training(optimizer: Any, state: Mapping[str, Any], schedule: Mapping[str, Any]) -> dict[str, Any]:
    """What rules a training, by the names that the options have."""
    options = {
        f"optimizer.{name}": value
        for group in state["param_groups"]
        for name, value in group.items()
        if name not in ("params", "lr", "initial_lr")  # the rate follows the schedule
    }
    return {
        "optimizer": optimizer,
        **options,
        "optimizer.lr": schedule["initial"],
        "warmup_epochs": schedule["warmup_epochs"],
        "plateau_patience": schedule["patience"] + 1,
    }
