"""The learning-rate schedule of the published program, as one scheduler: warm-up, then decay on a plateau."""

from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cefam.errors import CefamError

PLATEAU_PATIENCE = {"published": 6, "paper": 4}  # epochs; see docs/reference/conformance.md


def sgd(parameters: Any) -> torch.optim.Optimizer:
    """The optimizer of the paper and the published program: SGD, learning rate 0.1, no momentum, no weight decay."""
    return torch.optim.SGD(parameters, lr=0.1)


class WarmupPlateau(ReduceLROnPlateau):
    """Raise the rate over the first epochs, then multiply it by ``factor`` whenever the monitored loss stops falling.

    After epoch ``e`` of the first ``warmup_epochs`` the rate is ``initial + (peak - initial) * e / warmup_epochs`` with
    ``peak = initial * (warmup_epochs + 1)``. Afterwards, epochs whose loss is not below the best loss so far are counted;
    when the count reaches ``patience``, the rate decays and the count restarts. Warm-up epochs update the best loss but are
    not counted. ``state_dict`` holds the complete state, so a resumed run gives the same result.

    Args:
        optimizer: its current rates are the initial ones.
        warmup_epochs: 0: no warm-up; 1: from 0.1 to 0.2 after the first epoch.
        patience: 6 in the published program, 4 in the paper.
        factor: multiplier of the rate at each decay.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, warmup_epochs: int = 1, patience: int = 6, factor: float = 0.1
    ) -> None:
        if warmup_epochs < 0 or patience < 1:
            raise CefamError(
                f"warmup_epochs must not be negative and patience at least 1, got {warmup_epochs} and {patience}."
            )
        self.warmup_epochs = warmup_epochs
        self.initial = [group["lr"] for group in optimizer.param_groups]
        self.epochs = 0
        # torch decays when the count EXCEEDS its patience, the published program when it reaches it.
        super().__init__(
            optimizer, mode="min", factor=factor, patience=patience - 1, threshold=0.0, threshold_mode="abs"
        )

    def step(self, metrics: Any, epoch: int | None = None) -> None:  # type: ignore[override]
        """Update the rate at the end of an epoch; ``metrics`` is the monitored loss."""
        self.epochs += 1
        if self.epochs > self.warmup_epochs:
            super().step(metrics)
            return
        self.best = min(self.best, float(metrics))
        self.last_epoch = self.epochs
        for group, initial in zip(self.optimizer.param_groups, self.initial, strict=True):
            group["lr"] = initial * (1 + self.epochs)  # (peak - initial) / warmup_epochs is initial
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
