"""Interventions on drawn scenes: what an edit changes and what it leaves, effects against literal runs, agreement against closed forms."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cefam import ConceptSet, Explainer, Translator, load_classifier, load_vlm
from cefam.brodenette import CLASSES, RULES, describe, draw
from cefam.brodenette.scenes import class_of
from cefam.interventions import agreement, benchmark, checks
from cefam.interventions.edits import admissible, changed, interventions, needs
from cefam.interventions.effects import log_odds, measure, pixels
from cefam.interventions.rules import RuleInputs, contribution, true_mask, www
from cefam.methods import WWWRegions
from cefam.methods.associations import Associations, AssociationsAbout
from cefam.methods.base import MethodContext
from cefam.pairs import ConceptPairs
from tests.commands import run
from tests.conftest import fill


@pytest.fixture(scope="module")
def explainer():
    classifier = load_classifier("brodenette")
    concepts = ConceptSet.brodenette().embed(load_vlm("brodenette"))
    return Explainer(classifier, fill(Translator(classifier.channels, 64), 3), concepts, num_channels=4)


@pytest.fixture(scope="module")
def found(explainer):
    return measure(explainer.classifier, describe("development", 0))


def shown(scene):
    return {int(n) for mask in draw(scene).masks.values() for n in np.unique(mask) if n and n <= 77}


@settings(max_examples=10)
@given(st.integers(0, 400))
def test_after_an_edit_the_concept_is_gone_and_no_other_class_is_there(index):
    scene = describe("confirmation", index)
    classes = {class_of(element) for element in scene.elements}
    for one in interventions(scene, shown(scene))[:: 1 + index % 5]:
        for each in one.alternatives:
            assert one.label.number not in shown(each)
            assert {class_of(element) for element in each.elements} <= {None, *classes}
            assert each.light == scene.light
            assert each.name == scene.name  # the same noise


def test_an_edit_of_a_color_leaves_every_other_pixel():
    scene = describe("development", 1)
    before = draw(scene)
    for one in interventions(scene, shown(scene)):
        if one.label.category == "color":
            number = one.label.number
            for each in one.alternatives[:3]:
                after = draw(each)
                where = (before.image != after.image).any(axis=-1)
                assert (before.masks["object"] == after.masks["object"]).all()
                inside = before.masks["color"] == number
                # Anti-aliased edges mix two colors; nothing else may change outside the mask.
                grown = np.pad(inside, 1)
                near = np.max([grown[i : i + 96, j : j + 96] for i in range(3) for j in range(3)], axis=0)
                assert (where & ~near).mean() < 0.02


def test_the_rules_concepts_are_what_a_class_needs():
    assert needs("goldfinch") == {
        ("object", "bird"),
        ("part", "body"),
        ("part", "wing"),
        ("color", "yellow"),
        ("color", "black"),
    }
    assert needs("cabin") == {("object", "house"), ("part", "facade"), ("material", "wood")}
    assert needs(None) == set()
    # Changing a needed color ends the class.
    for index in range(40):
        scene = describe("final", index)
        for one in interventions(scene, shown(scene)):
            if one.needed and one.label.category in ("color", "material"):
                assert all(each.label != scene.label for each in one.alternatives)


def test_effects_are_literal_differences_of_log_odds(explainer, found):
    classifier, target = explainer.classifier, found.target
    assert CLASSES[target] == found.scene.label

    def odds(scene):
        p = classifier.probabilities(classifier(pixels([scene])).logits)[0, target]
        return float(torch.log(p / (1 - p)).clamp(-30, 30))

    assert found.log_odds == pytest.approx(odds(found.scene), abs=1e-3)
    for row in (0, 5, len(found.interventions) - 1):
        after = [odds(each) for each in found.interventions[row].alternatives]
        assert float(found.effect[row]) == pytest.approx(found.log_odds - sum(after) / len(after), abs=1e-3)
    assert found.noise > 0
    assert (found.masks.flatten(1).sum(dim=1) >= 16).all()


def test_several_concepts_are_changed_together(found):
    labels = [one.label for one in found.interventions]
    gone = [label for label in labels if label.category in ("part", "object")][:4]
    scene = changed(found.scene, gone)
    assert not {label.number for label in gone} & shown(scene)
    assert changed(found.scene, []) == found.scene


def test_importances_by_name_and_by_place(explainer, found):
    rule = contribution()
    given_ = benchmark.importance(explainer, rule, found, found.target)
    index = torch.tensor([explainer.concepts.numbers.index(number) for number in found.numbers])
    pairs = ConceptPairs(torch.zeros_like(index), index)
    same = explainer.contribution(found.image[None], pairs, found.target)
    assert given_["name"].tolist() == pytest.approx(same.value.tolist(), rel=1e-3, abs=1e-5)
    # By place, literally: every leading concept's contribution over its region, summed in the dilated mask.
    best = explainer.scores(found.image[None])[0].topk(benchmark.SPREAD).indices
    pairs = ConceptPairs(torch.zeros_like(best), best)
    effect, regions = (
        explainer.contribution(found.image[None], pairs, found.target),
        explainer.regions(found.image[None], pairs),
    )
    total = torch.zeros(96, 96, dtype=torch.double)
    for row, stage in enumerate(effect.stage.tolist()):
        region = torch.nn.functional.interpolate(regions.maps[stage][row][None, None], (96, 96), mode="bilinear")[
            0, 0
        ].double()
        if float(region.sum()) > 0:
            total += effect.value[row] * region / region.sum()
    for row in (0, 3):
        mask = np.pad(found.masks[row].numpy(), 2)
        wide = np.max([mask[i : i + 96, j : j + 96] for i in range(5) for j in range(5)], axis=0)
        assert float(given_["place"][row]) == pytest.approx(
            float(total[torch.from_numpy(wide)].sum()), rel=1e-3, abs=1e-5
        )


def test_the_true_mask_is_filled_and_nothing_else(explainer, found):
    index = torch.tensor([explainer.concepts.numbers.index(number) for number in found.numbers])
    value, _ = true_mask(explainer, RuleInputs(found.image, found.target, index, torch.zeros_like(found.masks)))
    assert value.abs().max() < 1e-5  # a unit in the last place of a logit of 10 is 1e-6
    value, _ = true_mask(explainer, RuleInputs(found.image, found.target, index, found.masks))
    assert value.abs().max() > 0.1


def test_www_sums_the_neurons_of_a_concept(explainer, found, tmp_path):
    channel, concept = torch.tensor([3, 3, 7]), torch.tensor([1, 2, 2])
    about = AssociationsAbout(
        "www", {}, explainer.classifier.identity(), explainer.concepts.identity, explainer.concepts.words
    )
    neurons = Associations.of_stages(
        about, [(0, channel[:1], channel[:1] * 0, torch.ones(1)), (3, channel, concept, torch.ones(3))]
    )
    neurons.write(tmp_path)
    method = WWWRegions(MethodContext.untrained(explainer.classifier, explainer.concepts), associations=str(tmp_path))
    values, maps = www(method)(
        explainer, RuleInputs(found.image, found.target, torch.tensor([0, 1, 2]), found.masks[:3])
    )
    output = explainer.classifier(found.image[None])
    activation = output.activations[-1].clone().requires_grad_()
    logit = explainer.classifier.resume(3, activation)[0, found.target]
    slope = torch.autograd.grad(logit, activation)[0].sum(dim=(-2, -1))[0]
    each = activation.detach().mean(dim=(-2, -1))[0] * slope
    assert values.tolist() == pytest.approx([0.0, float(each[3]), float(each[3] + each[7])], rel=1e-3, abs=1e-4)
    assert not maps[0].any()


def test_balanced_sign_agreement_is_not_fooled_by_always_for():
    effect = torch.tensor([3.0, 2.0, 4.0, -2.0, 0.1])
    always = torch.ones(5)
    assert agreement.balanced(agreement.signs(always, effect, 0.5)) == 0.5
    assert agreement.balanced(agreement.signs(effect, effect, 0.5)) == 1.0
    assert agreement.balanced(agreement.signs(torch.zeros(5), effect, 0.5)) == 0.0
    assert math.isnan(agreement.balanced(agreement.signs(always, effect.abs(), 0.5)))


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=12), st.floats(0, 1))
def test_orders_and_ranks_are_literal_ones(pairs, noise):
    value, effect = (torch.tensor(column, dtype=torch.double) for column in zip(*pairs, strict=True))
    right = every = 0.0
    for i in range(len(pairs)):
        for j in range(len(pairs)):
            if pairs[i][1] - pairs[j][1] > noise:
                every += 1
                right += 1 if pairs[i][0] > pairs[j][0] else 0.5 if pairs[i][0] == pairs[j][0] else 0
    assert agreement.ordered(value, effect, noise).tolist() == [right, every]
    if len(set(value.tolist())) > 1 and len(set(effect.tolist())) > 1:
        # torchmetrics adds 1e-6 to the denominator.
        assert agreement.spearman(value, effect) == pytest.approx(stats.spearmanr(value, effect).statistic, abs=1e-5)
    else:
        assert math.isnan(agreement.spearman(value, effect))


def test_intervals_hold_the_value():
    counts = [np.array([float(n % 3 > 0), 1.0]) for n in range(60)]
    found = agreement.estimate(counts, agreement.share)
    assert found.value == pytest.approx(2 / 3)
    assert found.low < found.value < found.high
    assert found.high - found.low < 0.3
    assert agreement.mean([1.0, math.nan, 0.0]).value == 0.5


def test_checks_of_a_perfect_and_of_an_empty_explanation(explainer, found):
    says = checks.Predictions(explainer.classifier, found)
    perfect = torch.where(found.needed, 1.0, 0.0).double()
    answers = checks.check(says, perfect)
    assert found.right
    assert answers["CSDC"][0] == 1
    assert answers["DC"][0] == 1  # without what the class needs, the class is gone
    nothing = checks.check(says, torch.zeros(len(perfect), dtype=torch.double))
    assert set(nothing["CSDC"]) == {0}
    assert set(nothing["D"]) == {1}
    assert set(nothing["DC"]) == {0}  # nothing was changed
    row = torch.tensor([[True] + [False] * (len(perfect) - 1)])
    scene = changed(found.scene, [found.interventions[0].label])
    assert int(says(row)) == int(explainer.classifier(pixels([scene])).logits.argmax())


def test_rivals_share_different_concepts_with_the_target():
    names = {rule.name: index for index, rule in enumerate(RULES)}
    found = checks.rivals(names["goldfinch"])
    assert found
    for one, other, first, second in found:
        assert first <= needs(CLASSES[one])
        assert second <= needs(CLASSES[other])
        assert not first & second


def test_admissible_edits_show_no_look_that_is_kept_for_the_evaluation():
    scene = describe("development", 3)
    other = describe("evaluation", 0)  # its first object has such a look
    place = scene.objects[0]
    kept = [e for e in other.elements if e.kind in {o.kind for o in other.elements} and e.parts]
    assert any(not admissible(scene, scene.with_element(place, element)) for element in kept)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory, explainer):
    from cefam import Trained

    return Trained(explainer.classifier, explainer.translator, explainer.concepts, settings=explainer.settings).write(
        tmp_path_factory.mktemp("trained") / "artefact"
    )


def test_the_command_is_taken_up_and_fixes_thresholds_on_development_scenes(artefact, capsys, monkeypatch):
    few = dict(list(benchmark.RULES.items())[:1])
    monkeypatch.setattr(benchmark, "rules_for", lambda explainer, method: few)
    inputs = ["contribution-benchmark", "--artefact", artefact]
    usual, seen = benchmark.examine, []

    def examine(explainer, control, split, index, method):
        seen.append((split, index))
        if seen == [("development", 0), ("development", 1)]:
            raise KeyboardInterrupt
        return usual(explainer, control, split, index, method)

    monkeypatch.setattr(benchmark, "examine", examine)
    assert run(*inputs, "--folder", "b/dev", "--scenes", 2) == 130
    assert run(*inputs, "--folder", "b/dev", "--scenes", 2) == 0
    assert seen.count(("development", 0)) == 1
    assert run(*inputs, "--folder", "b/final", "--scenes", 2, "--split", "final") == 1
    assert "name the folder of that run as `--development`" in capsys.readouterr().err
    assert run(*inputs, "--folder", "b/final", "--scenes", 2, "--split", "final", "--development", "b/dev") == 0
    chosen = json.loads(Path("b/dev/benchmark.json").read_text())["rows"]
    used = json.loads(Path("b/final/benchmark.json").read_text())["rows"]
    assert [row["best_threshold"] for row in chosen] == [row["threshold"] for row in used]
    assert [json.loads(line)["split"] for line in Path("b/looks.jsonl").read_text().splitlines()] == [
        "development",
        "final",
    ]
    assert run(*inputs, "--folder", "b/dev", "--scenes", 2) == 1
    assert "already holds a benchmark" in capsys.readouterr().err
    development = json.loads(Path("b/dev/benchmark.json").read_text())
    Path("b/dev/benchmark.json").write_text(json.dumps({**development, "rows": development["rows"][1:]}))
    final = ["--folder", "b/final", "--scenes", 2, "--split", "final", "--development", "b/dev", "--overwrite", "true"]
    assert run(*inputs, *final) == 1
    assert f"has no threshold for {chosen[0]['rule']}/{chosen[0]['mapping']}" in capsys.readouterr().err


def test_other_classifiers_are_refused(trained, capsys):
    assert run("contribution-benchmark", "--artefact", trained / "artefact", "--folder", "b") == 1
    assert "does not know Brodenette's classes" in capsys.readouterr().err
    assert not Path("b").exists()


def test_log_odds_are_cut_where_probabilities_are_0_or_1(explainer):
    odds = log_odds(explainer.classifier, torch.zeros(2, 3, 96, 96, dtype=torch.uint8), 0)
    assert odds.shape == (2,)
    assert odds.abs().max() <= 30
