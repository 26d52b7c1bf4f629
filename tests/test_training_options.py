"""Options of the Trainer, optimizers, schedules and monitors: they do what was asked for, or one sentence says why not."""

import csv
import os
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from cefam import CEFAM, ConceptSet, load_classifier, load_vlm
from cefam.datamodules import FeaturesData
from cefam.training.schedule import WarmupPlateau
from cefam.training.trainer_checks import better_when, described
from tests.commands import ROOT, csv_logger, feature_options, run

SGD = ("--optimizer=SGD", "--optimizer.lr=0.1")


@pytest.fixture
def fit(world, prepared, tmp_path):
    """A run of four epochs; its status, rates by epoch, and folder."""

    def fitted(*options, name="log", epochs=4):
        every = [*feature_options(world, prepared), f"--trainer.max_epochs={epochs}", csv_logger(tmp_path, name)]
        status = run("fit", *every, "--trainer.callbacks+=LearningRateMonitor", *options)
        rates = []
        if (tmp_path / name / "metrics.csv").is_file():
            with (tmp_path / name / "metrics.csv").open() as lines:
                rows = list(csv.DictReader(lines))
            rates = [float(row[key]) for row in rows for key in row if key.startswith("lr-") and row[key]]
        return status, rates, tmp_path / name

    return fitted


ASKED = {
    "step": ([*SGD, "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1", "--lr_scheduler.gamma=0.5"], [0.1, 0.05, 0.025, 0.0125]),
    "exponential": ([*SGD, "--lr_scheduler=ExponentialLR", "--lr_scheduler.gamma=0.1"], [0.1, 0.01, 0.001, 0.0001]),
    "cosine": ([*SGD, "--lr_scheduler=CosineAnnealingLR", "--lr_scheduler.T_max=2"], [0.1, 0.05, 0, 0.05]),
    "an optimizer alone": ([*SGD], [0.1] * 4),
    "an optimizer of the model": (["--model.optimizer=SGD", "--model.optimizer.lr=0.1", "--model.warmup_epochs=1"], [0.1, 0.2, 0.2, 0.2]),
    "a plateau that never ends": (
        [*SGD, "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/loss", "--lr_scheduler.patience=0",
         "--lr_scheduler.threshold=1000", "--lr_scheduler.threshold_mode=abs"],
        [0.1, 0.1, 0.01, 0.001],
    ),
    "a plateau of the training": (
        [*SGD, "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=train/loss", "--lr_scheduler.patience=0",
         "--lr_scheduler.threshold=1000", "--lr_scheduler.threshold_mode=abs"],
        [0.1, 0.1, 0.01, 0.001],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKED)
def test_rates_are_those_that_were_asked_for(name, fit):
    options, expected = ASKED[name]
    status, rates, _ = fit(*options)
    assert status == 0
    rates = rates if len(rates) == 4 else rates[:: len(rates) // 4]  # without a schedule they are logged at every step
    assert rates == pytest.approx(expected, abs=1e-9)


def test_averaged_weights_have_rates_of_their_own(fit):
    """SWA goes from the schedule's rate to its own along a cosine over ten epochs."""
    status, rates, _ = fit(
        *SGD, "--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.5",
        "--trainer.callbacks.swa_epoch_start=2",
    )  # fmt: skip
    assert status == 0
    assert rates[:2] == pytest.approx([0.1, 0.1])
    cosine = [0.5 + (0.1 - 0.5) * (1 + torch.cos(torch.tensor(torch.pi * n / 10)).item()) / 2 for n in range(5)]
    assert rates[2] in [pytest.approx(value, abs=1e-6) for value in cosine]
    assert rates == sorted(rates)


class Rates(Callback):
    """The rate of every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, batch, index):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_schedule_by_step_or_by_epoch_in_python(interval, prepared, tmp_path, world):
    class Mine(CEFAM):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.translator.parameters(), lr=1.0)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": LambdaLR(optimizer, lambda n: 0.5**n), "interval": interval},
            }

    module, rates = _module(world, Mine), Rates()
    data = FeaturesData(str(prepared / "features/train"), str(prepared / "features/val"), batch_size=16)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(
        max_epochs=2, callbacks=[rates, ModelCheckpoint(tmp_path)], accelerator="cpu", inference_mode=False, **quiet
    )
    trainer.fit(module, datamodule=data)
    steps = len(rates.seen) // 2
    assert steps > 1
    expected = [0.5**n for n in range(2 * steps)] if interval == "step" else [1.0] * steps + [0.5] * steps
    assert rates.seen == expected


def _module(world, kind=CEFAM):
    classifier = load_classifier("resnet18", str(world / "resnet18.pth"), num_classes=10)
    vlm = load_vlm("tiny_clip", str(world / "tiny_clip.pt"), str(world / "tiny_clip.json"))
    return kind(classifier, vlm, ConceptSet.from_words(["wing", "tail", "leg"]))


def test_a_checkpoint_says_which_optimizer_and_schedule_it_was_trained_with(fit):
    status, _, folder = fit(*ASKED["step"][0])
    assert status == 0
    training = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["cefam"]["training"]
    assert (training["optimizer"], training["optimizer.lr"]) == ("SGD", 0.1)
    assert (training["lr_scheduler"], training["lr_scheduler.gamma"]) == ("StepLR", 0.5)
    assert "warmup_epochs" not in training


def test_a_run_that_is_resumed_with_another_schedule_is_refused(fit, capsys):
    assert fit(*ASKED["step"][0], epochs=2)[0] == 0
    other = [*SGD, "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1", "--lr_scheduler.gamma=0.1"]
    assert fit(*other, "--ckpt_path=last")[0] == 1
    assert "was trained with lr_scheduler.gamma = 0.5, and this run asks for 0.1" in capsys.readouterr().err


def test_a_resumed_schedule_goes_on(fit):
    assert fit(*ASKED["step"][0], epochs=2)[0] == 0
    status, rates, _ = fit(*ASKED["step"][0], "--ckpt_path=last")
    assert status == 0
    assert rates[-2:] == pytest.approx([0.025, 0.0125])


def test_described_takes_every_form_that_lightning_takes():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    schedule = LambdaLR(optimizer, lambda n: 1.0)
    for configured in (optimizer, [optimizer], {"optimizer": optimizer}, ([optimizer], [])):
        assert described(configured)["lr_scheduler"] is None
    for given in (schedule, {"scheduler": schedule, "interval": "step"}):
        for configured in ({"optimizer": optimizer, "lr_scheduler": given}, ([optimizer], [given])):
            assert described(configured)["lr_scheduler"] == "LambdaLR"
    ours = described({"optimizer": optimizer, "lr_scheduler": WarmupPlateau(optimizer, 3, 5)})
    assert (ours["warmup_epochs"], ours["plateau_patience"]) == (3, 5)
    assert (
        described({"optimizer": optimizer, "lr_scheduler": ReduceLROnPlateau(optimizer)})["lr_scheduler.mode"] == "min"
    )


@pytest.mark.parametrize(
    ("monitor", "best"), [("val/loss", "min"), ("val/cosine", "max"), ("val/concept_correlation", "max")]
)
def test_the_best_checkpoint_is_the_best(monitor, best, fit):
    status, _, folder = fit(f"--checkpoint.monitor={monitor}", f"--early_stopping.monitor={monitor}")
    assert status == 0
    with (folder / "metrics.csv").open() as lines:
        values = [(float(row[monitor]), int(row["epoch"])) for row in csv.DictReader(lines) if row[monitor]]
    kept = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["epoch"]
    value = next(value for value, epoch in values if epoch == kept)
    assert value == (max if best == "max" else min)(value for value, _ in values)
    assert better_when(monitor) == best


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (
            ["--checkpoint.monitor=val/cosin"],
            "`checkpoint.monitor` is 'val/cosin', which is not logged. Did you mean 'val/cosine'",
        ),
        (
            [*SGD, "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/lss"],
            "`lr_scheduler.monitor` is 'val/lss'",
        ),
        (
            [*SGD, "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/cosine"],
            "`lr_scheduler.monitor` is 'val/cosine', which is better when it is higher, and `lr_scheduler.mode` is 'min': set it to 'max'",
        ),
        (
            [
                "--trainer.callbacks+=ModelCheckpoint",
                "--trainer.callbacks.monitor=val/cosine",
                "--trainer.callbacks.filename=mine",
            ],
            "`checkpoint.monitor` is 'val/cosine', which is better when it is higher",
        ),
        (
            ["--trainer.callbacks+=LearningRateFinder"],
            "the rate here belongs to the optimizer: try values of `model.optimizer.lr`",
        ),
        (["--trainer.enable_checkpointing=false"], "enable_checkpointing=False"),
        (["--trainer.max_steps=0"], "`trainer.max_steps` above 0"),
    ],
)
def test_what_would_be_wrong_is_refused_in_one_sentence(options, advice, fit, capsys):
    status, _, _ = fit(*options)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cefam fit: ")]
    assert status == 1
    assert advice in said[-1]
    assert "please report it" not in said[-1]


def test_fewer_steps_than_an_epoch_end_with_a_checkpoint(fit):
    status, _, folder = fit("--trainer.max_steps=2")
    assert status == 0
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize(
    ("logger", "advice"),
    [
        (
            "lightning.pytorch.loggers.MLFlowLogger",
            "The package mlflow>=1.0.0 is needed and not installed: `pip install 'mlflow",
        ),
    ],
)
def test_a_logger_that_is_not_installed_is_named(logger, advice, world, prepared, capsys):
    assert run("fit", *feature_options(world, prepared), f"--trainer.logger={logger}") == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cefam fit: ")]
    assert advice in said[-1]


@pytest.mark.processes
def test_nobody_logged_in_to_wandb_is_a_sentence(world, prepared, tmp_path):
    """In a process of its own: W&B keeps what it has found for the next run."""
    environment = {k: v for k, v in os.environ.items() if k not in ("WANDB_MODE", "WANDB_API_KEY")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "PYTHONPATH": str(ROOT)}
    words = ["-m", "cefam", "fit", *map(str, feature_options(world, prepared)), "--config=logger/wandb"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("cefam fit: ")]
    assert done.returncode == 1
    assert "wandb login" in said[-1]
    assert "please report it" not in said[-1]
