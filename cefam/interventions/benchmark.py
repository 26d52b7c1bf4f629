"""The contribution benchmark: agreement of explanation rules with interventional effects on drawn scenes, as a table."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.explainer import Explainer
from cefam.brodenette.scenes import describe
from cefam.errors import CefamError
from cefam.interventions import agreement
from cefam.interventions.checks import THRESHOLDS, Predictions, check, curves, sensitivity
from cefam.interventions.effects import Effects, measure
from cefam.interventions.rules import CONTROLS, REFERENCES, RULES, Rule, RuleInputs, last_stages, www
from cefam.methods import WWWRegions
from cefam.towers.classifier import FrozenClassifier

MAPPINGS = ("name", "place")
SPREAD = 16  # number of best-scoring concepts in the mapping by place
DILATION = 5  # pixels, kernel size of the masks' dilation, as in FunnyBirds
SHUFFLED = "control: shuffled classifier"


def rules_for(explainer: Explainer, method: WWWRegions | None = None) -> dict[str, Rule]:
    """All rules, including WWW's if given, except the shuffled classifier's, which needs another explainer."""
    others = {} if method is None else {"WWW": www(method)}
    return {**RULES, **last_stages(explainer), **others, **CONTROLS, **REFERENCES}


def shuffled(explainer: Explainer) -> Explainer:
    """The same explainer with a classifier whose weights are randomly permuted within each tensor."""
    given = copy.deepcopy(explainer.classifier.unfolded().module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in given.parameters():
            order = torch.randperm(value.numel(), generator=generator)
            value.copy_(value.flatten()[order].view_as(value))
    old = explainer.classifier
    classifier = FrozenClassifier(
        given, old.stage_names, old.input_size, preprocessing=old.preprocessing, class_names=old.class_names
    )
    return Explainer(classifier, explainer.translator, explainer.concepts, None, explainer.settings)


def examine(
    explainer: Explainer, control: Explainer, split: str, index: int, method: WWWRegions | None = None
) -> dict[str, Any]:
    """Evaluate one scene: effects, every rule's importances by both mappings, FunnyBirds' checks; in plain types."""
    found = measure(explainer.classifier, describe(split, index))
    says = Predictions(explainer.classifier, found)
    rows: dict[str, Any] = {}
    for name, rule in rules_for(explainer, method).items():
        rows[name] = _answers(explainer, rule, found, says)
    rows[SHUFFLED] = _answers(control, RULES["contribution (paper's rule)"], found, says)
    return {
        "scene": found.scene.name,
        "right": found.right,
        "labels": [[each.label.category, each.label.name] for each in found.interventions],
        "needed": found.needed.tolist(),
        "effect": found.effect.tolist(),
        "probability": found.probability.tolist(),
        "noise": found.noise,
        "rules": rows,
    }


def _answers(explainer: Explainer, rule: Rule, found: Effects, says: Predictions) -> dict[str, Any]:
    """A rule's importances of the scene's concepts by both mappings, with the results of the checks."""
    importances = importance(explainer, rule, found, found.target)

    def of_target(mapping: str) -> list[float]:
        return sensitivity(found, lambda target: importance(explainer, rule, found, target)[mapping])

    return {
        mapping: {
            "importance": values.tolist(),
            "checks": check(says, values),
            "sensitivity": of_target(mapping) if mapping == "name" else [],
        }
        for mapping, values in importances.items()
    }


def importance(explainer: Explainer, rule: Rule, found: Effects, target: int) -> dict[str, Tensor]:
    """Importances of a scene's P concepts, double: by name, and by place.

    By name: the rule's value of the concept. By place: the rule's values of the best-scoring concepts, each distributed over
    its region and summed inside the concept's dilated mask, as FunnyBirds maps attributions to parts.
    """
    place = {number: index for index, number in enumerate(explainer.concepts.numbers)}
    named = torch.tensor([place[number] for number in found.numbers])
    best = explainer.scores(found.image.unsqueeze(0))[0].topk(SPREAD).indices
    concepts = torch.cat([named, best])
    where = dict(zip(named.tolist(), found.masks, strict=True))
    nothing = torch.zeros_like(found.masks[0])
    masks = torch.stack([where.get(concept, nothing) for concept in concepts.tolist()])
    values, maps = rule(explainer, RuleInputs(found.image, target, concepts, masks))
    spread = maps[len(named) :].double()
    spread = spread / spread.sum(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    total = (values[len(named) :].double().view(-1, 1, 1) * spread).sum(dim=0)
    wide = F.max_pool2d(found.masks.double().unsqueeze(1), DILATION, 1, DILATION // 2).squeeze(1)
    return {"name": values[: len(named)].double(), "place": (wide * total).sum(dim=(-2, -1))}


@dataclass(frozen=True)
class Row:
    """Results of a rule under one mapping, over many scenes."""

    rule: str
    mapping: str
    sign: agreement.Estimate
    auc: agreement.Estimate
    spearman: agreement.Estimate
    checks: dict[str, float] = field(default_factory=dict)
    threshold: float = float("nan")
    oracle: dict[str, float] = field(default_factory=dict)
    best_threshold: float = float("nan")


def rows(records: Sequence[Mapping[str, Any]], thresholds: Mapping[str, float] | None = None) -> list[Row]:
    """Rows of the table, with checks at the thresholds t by "rule/mapping" (``None``: the best on these records)."""
    made = []
    for rule in records[0]["rules"]:
        for mapping in MAPPINGS:
            mine = [(each, each["rules"][rule][mapping]) for each in records]
            made.append(_row(rule, mapping, mine, thresholds))
    return made


def _row(
    rule: str, mapping: str, mine: Sequence[tuple[Mapping[str, Any], Any]], thresholds: Mapping[str, float] | None
) -> Row:
    signs, orders, ranks = [], [], []
    for record, said in mine:
        value = torch.tensor(said["importance"], dtype=torch.double)
        effect = torch.tensor(record["effect"], dtype=torch.double)
        signs.append(agreement.signs(value, effect, record["noise"]))
        orders.append(agreement.ordered(value, effect, record["noise"]))
        ranks.append(agreement.spearman(value, effect))
    over = curves([said["checks"] for _, said in mine])
    inputs = [value for _, said in mine for value in said["sensitivity"]]
    best = int(np.nanargmax(over["Com"])) if not np.isnan(over["Com"]).all() else 0
    chosen = best
    if thresholds is not None:
        name = f"{rule}/{mapping}"
        if name not in thresholds:
            raise CefamError(
                f"The development run has no threshold for {name}: run it with the same artefact and `--probe`."
            )
        chosen = int(np.abs(THRESHOLDS - thresholds[name]).argmin())
    ranked = agreement.mean(ranks)

    def at(index: int) -> dict[str, float]:
        values = {name: float(values[index]) for name, values in over.items()}
        values["SD"] = values["Cor"] = ranked.value / 2 + 0.5
        values["TS"] = values["Con"] = float(np.mean(inputs)) if inputs else float("nan")
        return values

    return Row(
        rule=rule,
        mapping=mapping,
        sign=agreement.estimate(signs, agreement.balanced),
        auc=agreement.estimate(orders, agreement.share),
        spearman=ranked,
        checks=at(chosen),
        threshold=float(THRESHOLDS[chosen]),
        oracle=at(best),
        best_threshold=float(THRESHOLDS[best]),
    )


COLUMNS = ("CSDC", "PC", "DC", "D", "SD", "TS", "Com", "Cor", "Con")


def table(found: Sequence[Row], records: Sequence[Mapping[str, Any]]) -> str:
    """Format the table as Markdown."""
    concepts = sum(len(each["effect"]) for each in records)
    strong = sum(sum(abs(e) > each["noise"] for e in each["effect"]) for each in records)
    against = sum(sum(-e > each["noise"] for e in each["effect"]) for each in records)
    right = sum(each["right"] for each in records)
    lines = [
        f"{len(records)} scenes, {right} of them classified correctly; "
        f"{concepts} interventions, {strong} with an effect beyond the noise, "
        f"{against} of these against the class.",
        "",
        f"| rule | mapping | sign agreement, balanced | pairwise AUC | Spearman | {' | '.join(COLUMNS)} | t | Com, oracle t |",
        f"|---|---|---|---|---|{'---:|' * (len(COLUMNS) + 2)}",
    ]
    for row in found:
        checks = " | ".join(_number(row.checks[name]) for name in COLUMNS)
        lines.append(
            f"| {row.rule} | by {row.mapping} | {row.sign} | {row.auc} | {row.spearman} | {checks} | {row.threshold:.2f} | "
            f"{_number(row.oracle['Com'])} ({row.best_threshold:.2f}) |"
        )
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"
