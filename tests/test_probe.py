"""The probe pass: equal to full matrices, however it was stopped and shared; and the methods that are made from it."""

import json
import re
import shutil
import sys

import pytest
import torch
import torch.nn.functional as F

from cefam import ConceptSet, Trained, Translator, load_classifier, load_vlm
from cefam.attribution.scores import pool
from cefam.datasets.photographs import Photographs
from cefam.errors import CefamError
from cefam.images.views import EvaluationView
from cefam.io.passes import Pass, Unit
from cefam.methods import (
    Activated,
    CLIPDissectRegions,
    MethodContext,
    WWWRegions,
    clip_dissect,
)
from cefam.methods.associations import Associations, AssociationsAbout
from cefam.methods.clip_dissect import dissect, rank_reorder
from cefam.methods.www import match, neuron_contributions
from cefam.pairs import ConceptPairs
from cefam.probe import Probe, compute
from cefam.probe.compute import top_of
from cefam.towers.vlm import encode_images
from tests.commands import command, run

COUNT = 110
TOWERS = ["--config", "features/demo", "--size", "96", "--resize", "96", "--device", "cpu"]
TOWERS_ALONE = [
    "--classifier.class_path", "cefam.load_classifier", "--classifier.init_args.name", "brodenette",
    "--vlm.class_path", "cefam.load_vlm", "--vlm.init_args.name", "brodenette",
]  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "scenes"
    options = [
        "--kind",
        "brodenette",
        "--source",
        "train",
        "--count",
        COUNT,
        "--masks",
        "[]",
        "--samples_per_shard",
        30,
    ]
    assert run("prepare", *options, "--folder", folder) == 0
    return folder


def probe(scenes, folder, *options):
    return run("probe", *TOWERS, "--images", scenes, "--folder", folder, *options)


@pytest.fixture(scope="module")
def probed(scenes):
    assert probe(scenes, scenes.parent / "probe", "--keep_pooled", "true") == 0
    return scenes.parent / "probe"


@pytest.fixture(scope="module")
def towers():
    return load_classifier("brodenette"), load_vlm("brodenette")


def bench_of(towers, folder, concepts=None):
    classifier, vlm = towers
    concepts = (concepts or ConceptSet.brodenette()).embed(vlm)
    torch.manual_seed(0)
    translator = Translator(classifier.channels, vlm.embedding_dim)
    return MethodContext(Trained(classifier, translator, concepts), vlm, Probe.read(folder))


@pytest.fixture(scope="module")
def matrices(scenes, towers):
    """Activations (N, C_l) and embeddings (N, D) of all photographs at once."""
    classifier, vlm = towers
    images = torch.stack(
        [EvaluationView(96, 96)(picture()) for group in Photographs.read(scenes).groups for picture in group.open()]
    )
    with torch.no_grad():
        output = classifier(images)
        return [pool(a) for a in output.activations], F.normalize(encode_images(vlm.freeze(), images), dim=-1)


def test_a_probe_is_what_the_full_matrices_give(probed, matrices):
    activations, embedding = matrices
    found = Probe.read(probed)
    for stage, values in enumerate(activations):
        order = values.argsort(dim=0, descending=True, stable=True)[:100]
        torch.testing.assert_close(found.value[stage], values.gather(0, order))
        torch.testing.assert_close(found.cross[stage], values.double().T @ embedding.double())
        torch.testing.assert_close(found.square[stage], values.double().square().sum(0))
        torch.testing.assert_close(found.mean[stage], values.double().mean(0))
        kept_embedding, kept = found.everything(stage)
        torch.testing.assert_close(kept, values)
        torch.testing.assert_close(kept_embedding, embedding)
    torch.testing.assert_close(found.gram, embedding.double().T @ embedding.double())


@pytest.mark.parametrize("name", ["soft_wpmi", "wpmi", "cos_similarity", "cos_similarity_cubed", "rank_reorder"])
def test_similarities_of_a_probe_are_those_of_the_matrices(name, probed, towers, matrices):
    activations, embedding = matrices
    context = bench_of(towers, probed)
    text = F.normalize(towers[1].encode_text(list(dict.fromkeys(context.concepts.words))), dim=-1)
    function = rank_reorder if name == "rank_reorder" else getattr(clip_dissect, name)
    for stage, values in enumerate(activations):
        found = clip_dissect._of_probe(context.probe, text, stage, name)
        expected = function(embedding @ text.T, values)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)


def test_the_first_of_equally_active_photographs_comes_first():
    values, rows = torch.tensor([[1.0], [2.0], [1.0], [2.0]]), torch.arange(4).unsqueeze(1)
    assert top_of(values, rows, 3)[1].flatten().tolist() == [1, 3, 0]
    # Merged from parts, the same.
    parts = [top_of(values[:2], rows[:2], 3), top_of(values[2:], rows[2:], 3)]
    both = [torch.cat(column) for column in zip(*parts, strict=True)]
    assert top_of(*both, 3)[1].flatten().tolist() == [1, 3, 0]


def test_a_transformers_neuron_is_its_class_token_behind_the_final_norm():
    """As CLIP-Dissect takes it; or the mean or maximum of the map."""
    classifier = load_classifier("brodenette_vit")
    images = (torch.rand(2, 3, 96, 96) * 255).byte()
    output, module = classifier(images), classifier.module
    with torch.no_grad():
        tokens = module._process_input(classifier._input(images))
        tokens = torch.cat([module.class_token.expand(2, -1, -1), tokens], dim=1)
        encoded = module.encoder(tokens)  # the final norm is its last step
    torch.testing.assert_close(compute.pooled(output, "published")[0], encoded[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compute.pooled(output, "mean")[0], encoded[:, 1:].mean(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compute.pooled(output, "max")[0], encoded[:, 1:].amax(dim=1), rtol=1e-4, atol=1e-5)


def same(one, other):
    """Two finished probes hold the same numbers."""
    a, b = Probe.read(one), Probe.read(other)
    assert {**vars(a.manifest), "files": 0} == {**vars(b.manifest), "files": 0}
    for name in ("value", "photograph", "cross", "square", "mean"):
        assert all(torch.equal(x, y) for x, y in zip(getattr(a, name), getattr(b, name), strict=True)), name
    for name in ("embedding", "gram", "scale", "correlation", "covariance"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_a_stopped_probe_is_taken_up(scenes, tmp_path, monkeypatch):
    assert probe(scenes, tmp_path / "whole") == 0
    assert not list((tmp_path / "whole").glob("probe-*"))  # the parts are removed in the end
    done = []
    write = compute._Work.write

    def stopped(self, parts, first, path):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(first)
        return write(self, parts, first, path)

    monkeypatch.setattr(compute._Work, "write", stopped)
    assert probe(scenes, tmp_path / "stopped") == 130
    assert not (tmp_path / "stopped" / "manifest.json").exists()
    with pytest.raises(CefamError, match="is not a finished probe"):
        Probe.read(tmp_path / "stopped")
    again = []
    monkeypatch.setattr(
        compute._Work, "write", lambda self, p, first, path: again.append(first) or write(self, p, first, path)
    )
    assert probe(scenes, tmp_path / "stopped") == 0
    assert not set(done) & set(again)  # nothing is computed twice
    same(tmp_path / "whole", tmp_path / "stopped")
    again.clear()
    assert probe(scenes, tmp_path / "stopped") == 0  # finished: nothing to do, also for a new list of concepts
    assert again == []


@pytest.mark.soak
def test_two_processes_give_the_probe_of_one(scenes, tmp_path):
    assert probe(scenes, tmp_path / "one") == 0
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29611", "-m", "cefam"]
    status, output = command(*words, "probe", *TOWERS, "--images", scenes, "--folder", tmp_path / "two")
    assert status == 0, output
    same(tmp_path / "one", tmp_path / "two")


def test_processes_share_a_pass_and_another_number_goes_on(tmp_path):
    def units(log):
        def write(name, path):
            log.append(name)
            path.write_text(name)
            return {}

        return [Unit(f"{n}.txt", str(n), 1, lambda path, n=n: write(str(n), path)) for n in range(5)]

    log = []
    with Pass(tmp_path, ["x"], (1, 2)) as second:
        assert [e["file"] for e in second.over(units(log), "t", 5)] == ["1.txt", "3.txt"]
    with Pass(tmp_path, ["x"]) as alone:
        assert len(list(alone.over(units(log), "t", 5))) == 5
        assert [e["file"] for e in alone.finished(units([]))] == [f"{n}.txt" for n in range(5)]
    assert log == ["1", "3", "0", "2", "4"]


BAD = {
    "fewer photographs than K": (
        ["--top", "200"],
        1,
        "holds 110 photograph.s., fewer than the 200 per neuron: set .--top. to at most 110",
    ),
    "no K": (["--top", "0"], 1, "must be at least 1, got 0"),
    "another pooling": (["--pooling", "median"], 2, "median"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options_of_a_probe(name, scenes, tmp_path, capsys):
    options, status, advice = BAD[name]
    assert probe(scenes, tmp_path / "p", *options) == status
    assert re.search(advice, capsys.readouterr().err)
    assert not (tmp_path / "p").exists()


def test_another_probe_in_the_folder_is_not_written_over(scenes, probed, tmp_path, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in probed.iterdir()}
    assert probe(scenes, probed, "--top", "50") == 1
    assert "holds another probe" in capsys.readouterr().err
    assert before == {path.name: path.stat().st_mtime_ns for path in probed.iterdir()}


def test_similarities_of_all_photographs_need_them(scenes, towers, tmp_path):
    assert probe(scenes, tmp_path / "small", "--top", "40") == 0
    context = bench_of(towers, tmp_path / "small")
    with pytest.raises(CefamError, match=r"run `cefam probe` again with `--keep_pooled true`"):
        dissect(context, "rank_reorder")
    with pytest.raises(CefamError, match=r"soft_wpmi takes 100 photographs per neuron, the probe .* holds 40"):
        dissect(context)
    assert len(match(context).score)  # WWW takes 40
    with pytest.raises(CefamError, match="num_examples must lie between 1 and the 40"):
        match(context, num_examples=41)


def test_a_probe_of_other_towers_is_refused(probed, towers):
    classifier, vlm = towers
    context = bench_of(towers, probed)
    other = load_classifier("brodenette", stages=["layer3", "layer4"])
    trained = Trained(other, Translator(other.channels, 64), context.concepts)
    with pytest.raises(CefamError, match="made with another classifier: its stages"):
        CLIPDissectRegions(MethodContext(trained, vlm, context.probe))
    with pytest.raises(CefamError, match=r"WWW needs a probe: make it with `cefam probe`"):
        WWWRegions(MethodContext(context.trained, vlm))
    with pytest.raises(CefamError, match=r"CLIP-Dissect encodes texts: set `model.vlm`"):
        CLIPDissectRegions(MethodContext(context.trained, None, context.probe))
    assert classifier.channels == [16, 32, 64, 128]


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(p.read_bytes()[:100]), lambda p: p.write_bytes(b"")])
def test_a_damaged_probe_is_a_sentence(damage, probed, tmp_path):
    shutil.copytree(probed, tmp_path / "p")
    damage(tmp_path / "p" / "probe.safetensors")
    with pytest.raises(CefamError, match="cannot be read"):
        Probe.read(tmp_path / "p")


def test_associations_rank_neurons_over_the_stages():
    about = {"classifier": {}, "concepts": "c", "words": ["a", "b", "c"], "method": "m", "options": {}}
    found = Associations(
        about=AssociationsAbout(**about),
        stage=torch.tensor([0, 0, 1, 1, 0]),
        channel=torch.tensor([4, 2, 7, 7, 3]),
        concept=torch.tensor([0, 0, 0, 1, 0]),
        score=torch.tensor([1.0, 2.0, 9.0, 5.0, 2.0], dtype=torch.double),
    )
    best = found.best(3)
    assert best.valid.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert list(zip(best.stage[0].tolist(), best.channel[0].tolist(), strict=True)) == [(1, 7), (0, 2), (0, 3)]
    assert found.best(1, stages=[0]).channel[0].tolist() == [2]
    ranked = found.best(4, across="rank")  # the share of the stage's scores that are not higher
    assert ranked.score[0].tolist() == [1, 1, 1, 1 / 3]
    assert ranked.channel[0].tolist() == [2, 3, 7, 4]
    assert ranked.score[1, 0] == 1 / 2
    with pytest.raises(CefamError, match="across must be"):
        found.best(1, across="mean")


def test_equal_prompts_are_one_column_and_serve_all_their_concepts(probed, towers):
    """Two concepts of one word would share the softmax, and take two of the candidates."""
    records = ConceptSet.from_words(["wing", "wheel", "wing", "sky"], template="{}")
    context = bench_of(towers, probed, records)
    found, single = dissect(context), dissect(bench_of(towers, probed, ConceptSet.from_words(["wing", "wheel", "sky"])))
    best, alone = found.best(4), single.best(4)
    for concept, twin in ((0, 0), (1, 1), (2, 0), (3, 2)):
        assert torch.equal(best.channel[concept], alone.channel[twin])
        assert torch.equal(best.score[concept], alone.score[twin])


def test_regions_are_the_raw_maps_of_the_neurons(probed, towers):
    context = bench_of(towers, probed)
    method = WWWRegions(context, stages=["layer3", "layer4"])
    images = (torch.rand(2, 3, 96, 96) * 255).byte()
    activated = Activated(images, context.classifier(images))
    count = len(context.concepts)
    pairs = ConceptPairs(torch.arange(2).repeat_interleave(count), torch.arange(count).repeat(2))
    found = method.regions(activated, pairs, (24, 24), 4)
    best = method.associations.best(4, stages=[2, 3])
    for row in range(0, 2 * count, 7):
        for place in range(4):
            concept = int(pairs.concept[row])
            assert bool(found.valid[row, place]) == bool(best.valid[concept, place])
            if not found.valid[row, place]:
                continue
            stage, channel = int(found.stage[row, place]), int(best.channel[concept, place])
            raw = activated.output.activations[stage][int(pairs.image[row]), channel]
            wanted = F.interpolate(raw[None, None], (24, 24), mode="bilinear", align_corners=False)[0, 0]
            torch.testing.assert_close(found.maps[row, place], wanted)
    with pytest.raises(CefamError, match=r"no stage 'layer9'. Did you mean .* It has layer1, layer2, layer3, layer4"):
        WWWRegions(context, stages=["layer9"])


def test_contributions_of_neurons_are_activation_times_weight(towers):
    """With a mean and one linear layer behind it: z_k W_ck, which sums to the logit less its bias."""
    classifier, _ = towers
    images = (torch.rand(3, 3, 96, 96) * 255).byte()
    output = classifier(images)
    found = neuron_contributions(classifier, Activated(images, output))
    head, target = classifier.module.fc, output.logits.argmax(1)
    torch.testing.assert_close(found, pool(output.activations[-1]) * head.weight[target], rtol=1e-4, atol=1e-5)
    wanted = output.logits.gather(1, target.unsqueeze(1)).squeeze(1) - head.bias[target]
    torch.testing.assert_close(found.sum(1), wanted, rtol=1e-4, atol=1e-4)


def test_associate_writes_the_artefact_and_the_programs_own_file(probed, towers, tmp_path, capsys):
    options = [*TOWERS_ALONE, "--probe", probed, "--concepts", "brodenette"]
    assert run("associate", "--method", "clip_dissect", *options, "--folder", tmp_path / "cd") == 0
    assert "240 neurons stand for" in capsys.readouterr().out
    assert run("associate", "--method", "www", *options, "--folder", tmp_path / "www") == 0
    context = bench_of(towers, probed)
    for cls, name in ((CLIPDissectRegions, "cd"), (WWWRegions, "www")):
        stored = cls(MethodContext(context.trained), associations=str(tmp_path / name))  # neither probe nor VLM
        made = cls(context)
        assert all(
            torch.equal(a, b) for a, b in zip(stored.associations.best(4), made.associations.best(4), strict=True)
        )
    imported = ["--classifier.class_path", "cefam.load_classifier", "--classifier.init_args.name", "brodenette"]
    files = json.dumps({"all": str(tmp_path / "cd" / "descriptions.csv")})
    options = ["--kind", "clip_dissect", "--files", files, *imported, "--concepts", "brodenette"]
    assert run("import", *options, "--folder", tmp_path / "again") == 0
    again, first = Associations.read(tmp_path / "again"), Associations.read(tmp_path / "cd")
    assert torch.equal(again.best(4).channel, first.best(4).channel)
    files = json.dumps({f"layer{n}": str(tmp_path / "www" / f"www_layer{n}.pkl") for n in (1, 2, 3, 4)})
    options = ["--kind", "www", "--files", files, *imported, "--concepts", "brodenette"]
    assert run("import", *options, "--folder", tmp_path / "www again") == 0
    again, first = Associations.read(tmp_path / "www again"), Associations.read(tmp_path / "www")
    assert torch.equal(again.best(4).channel, first.best(4).channel)
    assert run("associate", "--method", "www", *TOWERS_ALONE, "--probe", probed, "--folder", tmp_path / "www") == 1
    assert "already holds associations" in capsys.readouterr().err
