"""Checks of a Trainer: options under which something other than requested would silently be learned or measured."""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import lightning as L

from cefam.errors import CefamError, near

P = ParamSpec("P")
R = TypeVar("R")


def runs_to_its_end(step: Callable[P, R]) -> Callable[P, R]:
    """A step that returns or fails.

    A Trainer would take StopIteration for the end of the data and skip the rest, and exit(0) would look like success.
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
        CefamError: with what to set instead.
    """
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
    if (trainer.check_val_every_n_epoch, trainer.val_check_interval) != (1, 1.0):
        raise CefamError(
            "The learning rate and the early stop count epochs by their validations: leave `trainer.check_val_every_n_epoch` at 1 and "
            "`trainer.val_check_interval` at 1.0."
        )


def check_monitors(trainer: L.Trainer, logged: Iterable[str]) -> None:
    """Refuse an early stop or checkpoint that follows a value which is not logged.

    Raises:
        CefamError: with near names.
    """
    known = list(logged)
    for option, callbacks in (
        ("early_stopping.monitor", trainer.early_stopping_callbacks),
        ("checkpoint.monitor", trainer.checkpoint_callbacks),
    ):
        for callback in callbacks:
            monitor = getattr(callback, "monitor", None)
            if monitor is not None and monitor not in known:
                raise CefamError(f"`{option}` is {monitor!r}, which is not logged.{near(monitor, known)}")


def check_precision(trainer: L.Trainer) -> None:
    """Refuse a precision that would round the weights and the mathematics of regions; autocast is for the towers alone.

    Raises:
        CefamError: with what to set instead.
    """
    if str(trainer.precision) not in ("32-true", "bf16-mixed", "16-mixed"):
        raise CefamError(
            f"The precision {trainer.precision!r} would round regions and metrics, too: set `trainer.precision` to 32-true, "
            f"bf16-mixed or 16-mixed."
        )


def check_resumed(asked: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other options than it began with: they would be ignored, or change it halfway.

    Args:
        asked: settings and training options of this run, by name.
        checkpoint: as Lightning has read it, made for this classifier and these concepts.

    Raises:
        CefamError: with the first option that differs, or where the checkpoint holds weights alone.
    """
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
