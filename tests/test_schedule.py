"""Warm-up + plateau: the rates by hand, and a resumed schedule."""

import pytest
import torch

from cefam.training.schedule import WarmupPlateau


def rates(losses, scheduler_options, resume_at=None):
    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        return optimizer, WarmupPlateau(optimizer, **scheduler_options)

    optimizer, scheduler = make()
    seen = [0.1]
    for epoch, loss in enumerate(losses):
        if epoch == resume_at:
            states = optimizer.state_dict(), scheduler.state_dict()
            optimizer, scheduler = make()
            optimizer.load_state_dict(states[0])
            scheduler.load_state_dict(states[1])
        scheduler.step(loss)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_one_warmup_epoch_doubles_the_rate():
    assert rates([3, 2, 1], {"warmup_epochs": 1}) == pytest.approx([0.1, 0.2, 0.2, 0.2])


def test_three_warmup_epochs_rise_evenly_to_four_times_the_rate():
    assert rates([4, 3, 2, 1], {"warmup_epochs": 3}) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])


def test_no_warmup():
    assert rates([2, 1], {"warmup_epochs": 0}) == pytest.approx([0.1, 0.1, 0.1])


def test_decay_when_the_count_reaches_the_patience_and_restarts():
    # best at the first epoch; equal counts as no improvement; two decays, three epochs each
    found = rates([1, 1, 2, 1, 1, 1, 1], {"warmup_epochs": 0, "patience": 3})
    assert found == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001])


def test_any_improvement_restarts_the_count():
    found = rates([1, 2, 2, 0.999999, 2, 2, 2], {"warmup_epochs": 0, "patience": 3})
    assert found == pytest.approx([0.1] * 7 + [0.01])


def test_warmup_sets_the_best_loss_but_does_not_count():
    found = rates([1, 2, 2, 2], {"warmup_epochs": 2, "patience": 2})
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.3, 0.03])


@pytest.mark.parametrize("resume_at", range(1, 8))
def test_a_resumed_schedule_goes_on_as_if_it_had_not_stopped(resume_at):
    losses, options = [3, 2, 2, 2, 2, 1, 1, 1, 1], {"warmup_epochs": 2, "patience": 2}
    assert rates(losses, options, resume_at) == pytest.approx(rates(losses, options))


@pytest.mark.parametrize("options", [{"warmup_epochs": -1}, {"patience": 0}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match="must not be negative"):
        rates([], options)
