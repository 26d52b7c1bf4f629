"""Options and configs: what wins, what is suggested, how an error is said."""

import pytest
import yaml

from cefam.commands._options import suggestion
from tests.commands import csv_logger, feature_options, run


def config_of(folder):
    return yaml.safe_load((folder / "log" / "config.yaml").read_text())


@pytest.mark.parametrize("order", ["before", "between", "after"])
def test_an_option_wins_over_a_config_wherever_it_stands(order, world, prepared, tmp_path):
    (tmp_path / "epochs.yaml").write_text("trainer: {max_epochs: 2}\nmodel: {similarity_weight: 0.5}\n")
    options = ["--trainer.max_epochs=1", "--model.similarity_weight=0.25"]
    config = ["--config", "epochs.yaml"]
    words = {"before": [*options, *config], "between": [options[0], *config, options[1]], "after": [*config, *options]}
    assert run("fit", *words[order], *feature_options(world, prepared), csv_logger(tmp_path)) == 0
    found = config_of(tmp_path)
    assert (found["trainer"]["max_epochs"], found["model"]["similarity_weight"]) == (1, 0.25)


def test_a_later_config_wins_over_an_earlier_one(world, prepared, tmp_path):
    for epochs in (1, 2):
        (tmp_path / f"{epochs}.yaml").write_text(f"trainer: {{max_epochs: {epochs}}}\n")
    words = ["--config=2.yaml", "-c", "1.yaml"]
    assert run("fit", *feature_options(world, prepared), *words, csv_logger(tmp_path)) == 0
    assert config_of(tmp_path)["trainer"]["max_epochs"] == 1


@pytest.mark.parametrize(
    ("message", "names", "expected"),
    [
        ("unrecognized arguments: --model.lrr=1.", ["--model.lr", "--trainer.max_epochs"], " Did you mean '--model.lr'?"),
        ("Expected a <class 'int'>. Got value: many.", ["--many_things"], ""),
        (
            "given class_path 'cefam.images.views.EvaluationView': Option 'resise' is not accepted.", [], " Did you mean 'resize'?",
        ),
        ("Option '--seed' is required.", ["--seed"], ""),
    ],
)  # fmt: skip
def test_near_names_are_suggested_for_words_that_are_none(message, names, expected):
    assert suggestion(message, names) == expected


def test_words_that_yaml_does_not_read_as_words_ask_for_quotes(world, prepared, capsys):
    assert run("fit", *feature_options(world, prepared), "--model.concepts=[2024, yes, red]") == 1
    assert "Put quotes around it" in capsys.readouterr().err
