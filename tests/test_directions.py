"""Directions of concepts in the space of pooled activations: the translator's gradient, and the regression over a probe."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cefam.attribution.directions import concept_directions, mean_activations, probe_directions, regressed_directions
from cefam.errors import CefamError
from cefam.methods import Activated, BeyondRegions, TCAVRegions, www
from cefam.methods.tcav import concept_vectors
from cefam.pairs import ConceptPairs
from cefam.probe import Probe, regression
from tests.test_probe import bench_of, matrices, probed, scenes, towers  # fixtures

__all__ = ["matrices", "probed", "scenes", "towers"]


def test_a_probe_knows_how_embeddings_depend_on_activations(probed, matrices):
    """Against numpy's own correlation; the squares of a stage's scales add to L x its variance, over C_l of C channels."""
    activations, embedding = matrices
    found, (z, e) = Probe.read(probed), (torch.cat(activations, dim=1).double(), embedding.double())
    channels = [values.shape[1] for values in activations]
    share = torch.cat([torch.full((c,), c * len(channels) / sum(channels)) for c in channels]).double()
    spread = z.std(dim=0, correction=0)
    live = spread > 0
    torch.testing.assert_close(found.scale[live], (spread * share.sqrt())[live].float(), rtol=1e-4, atol=1e-6)
    correlation = torch.corrcoef(z[:, live].T) / torch.outer(share[live], share[live]).sqrt()
    torch.testing.assert_close(found.correlation[live][:, live], correlation.float(), rtol=1e-3, atol=1e-4)
    wanted = (z - z.mean(0)).T @ (e - e.mean(0)) / len(z) / (spread * share.sqrt()).clamp_min(1e-30)[:, None]
    torch.testing.assert_close(found.covariance[live], wanted[live].float(), rtol=1e-3, atol=1e-5)
    assert found.correlation[~live].abs().sum() == 0
    assert (found.scale > 0).all()


def test_a_constant_channel_has_no_direction():
    """Its mean is rounded: what is left of it is no spread."""
    z, e = torch.rand(97, 4), F.normalize(torch.randn(97, 3), dim=1)
    z[:, 1], z[:, 2] = 0.1, 0.0
    found = regression.moments(z, e, [2, 2])
    assert found["scale"][1:3].tolist() == [1.0, 1.0]
    assert found["correlation"][1:3].abs().max() < 1e-12
    assert found["covariance"][1:3].abs().max() < 1e-12
    torch.testing.assert_close(found["correlation"].diagonal()[[0, 3]], torch.ones(2))


def test_a_large_probe_set_is_sampled_evenly(monkeypatch):
    monkeypatch.setattr(regression, "SAMPLE", 10)
    every = torch.arange(25)
    assert every[regression.sampled(0, 25, 25)].tolist() == list(range(0, 25, 3))
    parts = [regression.sampled(first, 5, 25) for first in range(0, 25, 5)]
    assert torch.equal(torch.cat(parts), regression.sampled(0, 25, 25))
    assert regression.sampled(3, 7, 10).all()


def test_a_regressed_direction_is_the_least_squares_one(probed, towers, matrices):
    """Literally: photographs as rows, and one more row per channel that asks for the translator's gradient; solved by numpy."""
    context = bench_of(towers, probed)
    z, embedding = torch.cat(matrices[0], dim=1).double(), matrices[1].double()
    mean = [value.float().unsqueeze(0).requires_grad_() for value in context.probe.mean]
    similarity = context.trained.explainer().networks.similarity(context.trained.translator(mean))
    found = torch.cat(regressed_directions(context.trained.explainer().networks, context.probe), dim=1).double()
    scale, count = context.probe.scale.double(), len(z)
    x = (z - z.mean(dim=0)) / scale
    for concept in (0, 5, 40):
        s = embedding @ F.normalize(context.concepts.embeddings[concept].double(), dim=0)
        s = s - s.mean()
        gradient = torch.cat(torch.autograd.grad(similarity[0, concept], mean, retain_graph=True), dim=1)[0].double()
        told = x @ (gradient * scale)
        prior = gradient * scale * (told @ s) / (told @ told)
        rows, wanted = torch.cat([x / count**0.5, torch.eye(x.shape[1])]), torch.cat([s / count**0.5, prior])
        solved = np.linalg.lstsq(rows.numpy(), wanted.numpy(), rcond=None)[0] / scale.numpy()
        torch.testing.assert_close(
            found[concept], torch.from_numpy(solved), rtol=1e-3, atol=1e-3 * np.abs(solved).max()
        )


def test_both_directions_count_the_same_and_stages_as_the_probe_confirms(probed, towers, matrices):
    """Literally, photograph by photograph: least squares of the VLM's cosines on the stages' parts of the regression."""
    context = bench_of(towers, probed)
    networks = context.trained.explainer().networks
    z, embedding = torch.cat(matrices[0], dim=1).double(), matrices[1].double()
    z = z - z.mean(dim=0)
    gradients = concept_directions(networks, mean_activations(context.probe))
    regressed = regressed_directions(networks, context.probe)
    found = probe_directions(networks, context.probe, regressed)
    for concept in (0, 5, 40):
        s = embedding @ F.normalize(context.concepts.embeddings[concept].double(), dim=0)
        sizes = [value.shape[1] for value in regressed]
        parts = [x @ d[concept].double() for x, d in zip(z.split(sizes, dim=1), regressed, strict=True)]
        factor = np.linalg.lstsq(torch.stack(parts, dim=1).numpy(), (s - s.mean()).numpy(), rcond=None)[0].clip(0, 8)
        both = [
            torch.cat([f * d[concept].double() for f, d in zip(factor, regressed, strict=True)]),
            torch.cat([d[concept].double() for d in gradients]),
        ]
        wanted = sum(each / (z @ each).square().mean().sqrt() for each in both)
        got = torch.cat([d[concept].double() for d in found])
        torch.testing.assert_close(got, wanted, rtol=1e-2, atol=2e-3 * float(wanted.abs().max()))


def test_a_regression_needs_the_translators_own_vlm(probed, towers):
    context = bench_of(towers, probed)
    other = dataclasses.replace(context.trained, vlm_identity={**context.probe.manifest.vlm, "fingerprint": "another"})
    with pytest.raises(CefamError, match="another vision-language model"):
        BeyondRegions(dataclasses.replace(context, trained=other))


def test_a_regression_needs_embeddings_of_one_size(probed, towers):
    context = bench_of(towers, probed)
    other = dataclasses.replace(context.probe, covariance=context.probe.covariance[:, :10])
    with pytest.raises(CefamError, match="have 64 dimensions, those of the probe 10"):
        BeyondRegions(dataclasses.replace(context, probe=other))


def test_beyond_takes_the_probe_where_there_is_one(probed, towers):
    context = bench_of(towers, probed)
    given, alone, asked = (
        torch.cat(BeyondRegions(context, **options).maps.directions, dim=1)
        for options in ({}, {"regression": False}, {"regression": True})
    )
    assert torch.equal(given, asked)
    networks = context.trained.explainer().networks
    assert torch.equal(alone, torch.cat(concept_directions(networks, mean_activations(context.probe)), dim=1))
    zero = BeyondRegions(dataclasses.replace(context, probe=None)).maps.directions
    start = [torch.zeros(channels) for channels in context.classifier.channels]
    assert torch.equal(torch.cat(zero, dim=1), torch.cat(concept_directions(networks, start), dim=1))


def test_vectors_of_tcav_are_gradients_at_the_mean_activation(probed, towers):
    context = bench_of(towers, probed)
    mean = [value.float().unsqueeze(0).requires_grad_() for value in context.probe.mean]
    explainer = context.trained.explainer()
    similarity = explainer.networks.similarity(context.trained.translator(mean))
    vectors = concept_vectors(context)
    for concept in (0, 5, 40):
        gradient = torch.autograd.grad(similarity[0, concept], mean, retain_graph=True)
        for stage, each in enumerate(gradient):
            torch.testing.assert_close(vectors[stage][concept], F.normalize(each[0], dim=0), rtol=1e-3, atol=1e-5)
    method = TCAVRegions(context)
    images = (torch.rand(2, 3, 96, 96) * 255).byte()
    activated = Activated(images, context.classifier(images))
    found = method.regions(activated, ConceptPairs(torch.tensor([1]), torch.tensor([5])), (6, 6), 4)
    wanted = torch.einsum("c,chw->hw", vectors[-1][5], activated.output.activations[-1][1]).relu()
    torch.testing.assert_close(found.maps[0, 0], wanted)
    slope = www.class_slopes(context.classifier, activated)
    torch.testing.assert_close(method.sensitivity(activated), slope @ vectors[-1].T)


def test_evidence_is_the_strongest_tenth_above_what_is_usual(probed, towers):
    """Literally, cell by cell with numpy, for a view and its four windows."""
    context = bench_of(towers, probed)
    networks = context.trained.explainer().networks
    slopes, method = regressed_directions(networks, context.probe), BeyondRegions(context)
    images = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    activated = Activated(images, context.classifier(images))
    found = method.presence(activated)[0]
    assert context.trained.explainer().evidence(images[:0]).shape == (0, len(context.concepts))
    mean = mean_activations(context.probe)
    scale = networks.concepts.logit_scale
    level = networks.similarity(networks.translator([value[None] for value in mean]))[0]
    for concept in (0, 5, 40):
        parts = []
        for zoom in (1.0, 1.7):
            cells = []
            for _, activations in method.maps.seen(activated, zoom):
                total = np.zeros((24, 24))
                for activation, slope in zip(activations, slopes, strict=True):
                    seen = torch.einsum("c,chw->hw", slope[concept], activation[0])[None, None]
                    total += F.interpolate(seen, (24, 24), mode="bilinear", align_corners=False)[0, 0].numpy()
                cells.append(total.ravel())
            cells = np.sort(np.concatenate(cells))
            parts.append(cells[-int(0.1 * len(cells)) :].mean() - 1.755 * cells.std(ddof=1))
        at_mean = sum(float(slope[concept] @ value) for slope, value in zip(slopes, mean, strict=True))
        wanted = float(level[concept]) + scale * (np.mean(parts) - at_mean)
        assert float(found[concept]) == pytest.approx(wanted, rel=1e-3, abs=1e-3)
