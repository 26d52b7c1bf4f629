"""Options and configs: what wins, what is suggested, how an error is said."""

import re
import subprocess
import sys

import pytest
import yaml

from cefam.commands import VERBS
from cefam.commands._names import ALWAYS, option_names
from cefam.commands._options import suggestion
from tests.commands import ROOT, csv_logger, feature_options, run


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


def test_a_misspelt_option_is_refused_before_torch_is_imported():
    check = "import sys; from cefam.commands import main; print(main(['explain', '--artifact', 'y']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert "There is no option `--artifact`. Did you mean `--artefact`?" in done.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_in_the_help_of_a_verb_passes_the_first_check(verb, capsys):
    with pytest.raises(SystemExit):
        run(verb, "--help")
    listed = set(re.findall(r"^ +(?:-\w, )?--(\w+)", capsys.readouterr().out, re.MULTILINE))
    known = {*ALWAYS, *option_names(verb)}
    assert "help" in listed
    assert listed <= known


@pytest.mark.parametrize("towers", ["classifier", "model.classifier"])
def test_a_tower_whose_arguments_are_missing_is_one_sentence(towers, tmp_path, capsys):
    verb = "features" if towers == "classifier" else "fit"
    options = [f"--{towers}.class_path=cefam.FrozenClassifier", f"--{towers}.init_args.stages=[layer4]"]
    options += [f"--{towers}.init_args.module.class_path=torchvision.models.resnet.ResNet"]
    assert run(verb, *options) == 2
    said = capsys.readouterr().err
    assert f"`{towers}`: torchvision.models.resnet.ResNet needs the argument(s) block, layers." in said
    assert "Union" not in said


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("cefam.load_classifer", "module 'cefam' has no attribute 'load_classifer'"),
        ("my_nets.Net", "No module named 'my_nets'"),
    ],
)
def test_a_tower_that_cannot_be_imported_is_one_sentence(path, reason, capsys):
    for verb, tower in (("features", "classifier"), ("fit", "model.classifier")):
        assert run(verb, f"--{tower}.class_path={path}") == 2
        said = capsys.readouterr().err
        assert f"cefam {verb}: `{tower}`: {path} cannot be imported ({reason}). (`cefam {verb} --help`" in said


def test_a_config_of_the_towers_alone_works_for_fit_as_for_features(world, prepared, tmp_path):
    options = feature_options(world, prepared)
    options[options.index(world / "model.yaml")] = world / "towers.yaml"
    assert run("fit", *options, "--trainer.max_epochs=1", csv_logger(tmp_path)) == 0
    assert config_of(tmp_path)["model"]["classifier"]["init_args"]["name"] == "resnet18"
