"""CLIP-Dissect and WWW: golden values of the authors' programs, slow literal second derivations, and what a probe gives."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cefam.methods import clip_dissect, www
from cefam.methods.clip_dissect import cos_similarity, cos_similarity_cubed, rank_reorder, soft_wpmi, wpmi
from cefam.methods.www import concept_weights, selected

GOLDEN = np.load(Path(__file__).parent / "golden" / "dissect.npz")
FUNCTIONS = {f.__name__: f for f in (soft_wpmi, wpmi, cos_similarity, cos_similarity_cubed)}


def golden(name):
    return torch.from_numpy(GOLDEN[name])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_similarities_are_those_of_the_published_program(name):
    found, expected = FUNCTIONS[name](golden("P"), golden("activations")), golden(name).double()
    assert found.dtype == torch.double
    # L is about -460: the published program's single precision is worth 3e-5 there.
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-4
    assert torch.equal(found.argmax(dim=1), expected.argmax(dim=1))


def test_weights_and_choices_are_those_of_www():
    weights = concept_weights(golden("www_examples"), golden("www_text"), golden("www_template"))
    assert torch.allclose(weights, golden("www_weight").double(), atol=1e-5)
    assert torch.equal(selected(weights), golden("www_selected"))
    assert not selected(weights)[19].any()


def literal_soft_wpmi(similarity, activations, top_k, a, lam, start, end):
    """The rule, with loops."""
    images, concepts = similarity.shape
    evidence = []
    for neuron in range(activations.shape[1]):
        order = sorted(range(images), key=lambda i: (-float(activations[i, neuron]), i))[:top_k]
        row = []
        for concept in range(concepts):
            total = 0.0
            for rank, image in enumerate(order):
                terms = [math.exp(a * float(similarity[image, other])) for other in range(concepts)]
                weight = start - (start - end) * rank / top_k
                total += math.log(1 + weight * (terms[concept] / sum(terms) - 1) + 1e-7)
            row.append(total)
        evidence.append(row)
    prior = [math.log(sum(math.exp(row[c]) for row in evidence) / len(evidence)) for c in range(concepts)]
    return torch.tensor(
        [[value - lam * prior[c] for c, value in enumerate(row)] for row in evidence], dtype=torch.double
    )


def test_soft_wpmi_equals_the_rule_with_loops(monkeypatch):
    random = torch.Generator().manual_seed(0)
    similarity, activations = torch.rand(30, 7, generator=random), torch.rand(30, 5, generator=random).round(decimals=1)
    expected = literal_soft_wpmi(similarity, activations, 12, 10, 0.7, 0.998, 0.97)
    assert torch.allclose(soft_wpmi(similarity, activations, 12, lam=0.7), expected, atol=1e-10)
    monkeypatch.setattr(clip_dissect, "NUMBERS", 40)  # chunks of one neuron and one concept
    assert torch.allclose(soft_wpmi(similarity, activations, 12, lam=0.7), expected, atol=1e-10)


def test_one_neuron_alone_says_nothing():
    """The prior is the mean over the neurons that are scored together."""
    similarity, activations = torch.rand(50, 4), torch.rand(50, 1)
    assert torch.allclose(soft_wpmi(similarity, activations, 10), torch.zeros(1, 4, dtype=torch.double))


def test_cosines_of_a_silent_neuron_are_zero():
    silent = torch.zeros(20, 1)
    assert torch.equal(cos_similarity(torch.rand(20, 3), silent), torch.zeros(1, 3, dtype=torch.double))
    assert torch.equal(cos_similarity_cubed(torch.rand(20, 3), silent), torch.zeros(1, 3, dtype=torch.double))


def test_rank_reorder_prefers_the_concept_that_orders_as_the_neuron_does():
    activations = torch.linspace(0, 1, 100).unsqueeze(1)
    similarity = torch.stack([activations[:, 0], 1 - activations[:, 0], torch.rand(100)], dim=1)
    found = rank_reorder(similarity, activations, top_fraction=0.2)
    assert found[0, 0] == 0
    assert found[0].argmax() == 0
    assert torch.equal(found, rank_reorder(similarity, activations, top_fraction=0.2))  # its random orders are seeded


def test_weights_are_sums_over_examples():
    examples, text, template = torch.randn(3, 5, 8), torch.randn(4, 8), torch.randn(8)
    literal = torch.zeros(3, 4, dtype=torch.double)
    for neuron in range(3):
        for concept in range(4):
            for example in examples[neuron]:
                cosines = (F.cosine_similarity(example.double(), t.double(), dim=0) for t in (text[concept], template))
                literal[neuron, concept] += next(cosines) - next(cosines)
    assert torch.allclose(concept_weights(examples, text, template), literal)
    assert torch.allclose(
        www._weights(F.normalize(examples, dim=-1).sum(1), F.normalize(text, dim=-1), template), literal, atol=1e-5
    )
