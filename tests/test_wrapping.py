"""What a network is told when it is wrapped: outputs that depend on neighbors or chance, gradients that do not flow, other modes."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from cefam import ConceptSet, Explainer, FrozenClassifier, Trained, Translator, load_classifier, load_vlm
from tests.conftest import fill

SIZE = (32, 32)
TEXT = F.normalize(torch.randn(30, 16, generator=torch.Generator().manual_seed(0)), dim=1)


class Net(nn.Module):
    """Three stages and a head; ``between`` calls a stage, ``end`` gives logits of pooled maps, ``view`` makes the input."""

    def __init__(self, norm=nn.BatchNorm2d, view=None, between=None, end=None):
        super().__init__()
        sizes = ((3, 8), (8, 12), (12, 12))
        self.a, self.b, self.c = (nn.Sequential(nn.Conv2d(n, m, 3, 2, 1), nn.ReLU(), norm(m)) for n, m in sizes)
        self.head, self.view, self.between = (
            nn.Linear(12, 5),
            view or (lambda x: x),
            between or (lambda stage, x: stage(x)),
        )
        self.end = end or (lambda head, pooled: head(pooled))
        fill(self, 3)

    def forward(self, x):
        x = self.a(self.view(x))
        x = self.between(self.b, x)
        return self.end(self.head, self.c(x).mean((2, 3)))


def explainer_of(module, stages=("a", "b", "c"), **options):
    classifier = FrozenClassifier(module, list(stages), input_size=options.pop("input_size", SIZE), **options)
    translator = fill(Translator(classifier.channels, 16, [10, 10]), 5).eval()
    return Explainer.from_tensors(classifier, translator, TEXT, logit_scale=10.0)


def told(explainer, images=None, size=SIZE):
    """Contributions of three concepts of one image."""
    images = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)) if images is None else images
    return [part.contribution for part in sorted(explainer.explain(images, top_k=3)[0], key=lambda p: p.concept.number)]


def untracked(features):
    return nn.BatchNorm2d(features, track_running_stats=False)


MEETING = {
    "BatchNorm without running statistics": {"norm": untracked},
    "a head normalized over the batch": {
        "end": lambda head, z: head((z - z.mean(0)) / (z.std(0, unbiased=False) + 1e-3))
    },
    "attention over the batch": {"end": lambda head, z: head((z @ z.T).softmax(dim=1) @ z)},
    "the batch's mean is taken off": {"view": lambda x: x - x.mean(dim=0, keepdim=True)},
    "softmax over the wrong dimension": {"end": lambda head, z: head(z).softmax(dim=0)},
}


@pytest.mark.parametrize("name", MEETING)
def test_photographs_that_meet_in_a_batch_are_refused(name):
    with pytest.raises(ValueError, match=r"change by up to .* with the other image of its batch"):
        FrozenClassifier(Net(**MEETING[name]), ["a", "b"], input_size=SIZE)


RANDOM = {
    "dropout without `training`": {"end": lambda head, z: head(F.dropout(z))},
    "noise": {"view": lambda x: x + 0.1 * torch.randn_like(x)},
    "Monte Carlo dropout": {"end": lambda head, z: head(F.dropout(z, 0.2, training=True))},
    "stochastic depth": {"between": lambda stage, x: stage(x) * (1 + torch.rand(()))},
}


@pytest.mark.parametrize("name", RANDOM)
def test_outputs_of_chance_are_refused_as_such(name):
    with pytest.raises(ValueError, match=r"for the same image differ by up to .* draws random numbers in eval mode"):
        FrozenClassifier(Net(**RANDOM[name]), ["a", "b"], input_size=SIZE)


@pytest.mark.parametrize(
    ("view", "batch"),
    [
        (lambda x: torch.cat([x, x.flip(-1)]), 2),
        (lambda x: torch.cat([x[..., i:, j:][..., :16, :16] for i in (0, 16) for j in (0, 16)]), 4),
        (lambda x: x.mean(dim=0, keepdim=True), 1),
    ],
)
def test_a_network_that_makes_views_of_an_image_is_refused_with_its_batch(view, batch):
    module = Net(view=view, end=lambda head, z: head(z).view(-1, 2 if len(z) > 2 else 1, 5).mean(0))
    with pytest.raises(ValueError, match=rf"Stage 'a' gives a batch of {batch} for"):
        FrozenClassifier(module, ["a", "b"], input_size=SIZE)


def test_tokens_with_the_batch_second_and_a_fixed_batch_are_refused():
    class Second(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.block = nn.Conv2d(3, 12, 8, 8), nn.TransformerEncoderLayer(12, 2, 16)
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            return self.head(self.block(self.patch(x).flatten(2).permute(2, 0, 1)).mean(dim=0))

    with pytest.raises(ValueError, match="has the batch in another dimension"):
        FrozenClassifier(Second().eval(), ["block"], input_size=SIZE, num_prefix_tokens=0)
    fixed = Net(end=lambda head, z: head(z.view(1, 12)))
    with pytest.raises(ValueError, match="takes one image and not two at once"):
        FrozenClassifier(fixed, ["a", "b"], input_size=SIZE)


def without_gradient(mode):
    def between(stage, x):
        with mode():
            return stage(x)

    return between


NO_FLOW = {
    "no_grad": {"between": without_gradient(torch.no_grad)},
    "detached": {"between": lambda stage, x: stage(x.detach())},
    "data": {"between": lambda stage, x: stage(x.data)},
    "through numpy": {"between": lambda stage, x: stage(torch.from_numpy(x.detach().numpy()))},
    "reentrant checkpointing": {"between": lambda stage, x: checkpoint(stage, x, use_reentrant=True)},
}


@pytest.mark.parametrize("name", NO_FLOW)
def test_a_gradient_that_does_not_flow_is_said_with_its_stages(name):
    with pytest.raises(ValueError, match="No gradient flows from stage 'a' to stage 'b'"):
        FrozenClassifier(Net(**NO_FLOW[name]), ["a", "b"], input_size=SIZE)
    if name != "reentrant checkpointing":  # the graph may begin inside of what runs without one
        assert all(value is not None for value in told(explainer_of(Net(**NO_FLOW[name]), ["b", "c"])))


def test_a_forward_in_inference_mode_is_said_with_its_module():
    module = Net(between=without_gradient(torch.inference_mode))
    with pytest.raises(ValueError, match=r"runs 'b\.0' under torch.inference_mode\(\), so no gradient"):
        FrozenClassifier(module, ["a", "b"], input_size=SIZE)
    whole = type("Whole", (Net,), {"forward": torch.inference_mode()(Net.forward)})()
    with pytest.raises(ValueError, match=r"under torch.inference_mode\(\), so no gradient"):
        FrozenClassifier(whole, ["a", "b"], input_size=SIZE)


def test_an_operation_without_a_gradient_is_said():
    class Blocked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("has no derivative")

    module = Net(between=lambda stage, x: stage(Blocked.apply(x)))
    with pytest.raises(ValueError, match=r"No gradient of the stages a, b can be computed .*has no derivative"):
        FrozenClassifier(module, ["a", "b"], input_size=SIZE)


def test_an_operation_that_vmap_does_not_know_gives_the_same_regions():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return 2 * torch.from_numpy(gradient.numpy())

    usual = explainer_of(Net(between=lambda stage, x: stage(x * 2)))
    strange = explainer_of(Net(between=lambda stage, x: stage(Doubled.apply(x))))
    assert usual.classifier._batched_gradients
    assert not strange.classifier._batched_gradients
    assert told(strange) == pytest.approx(told(usual), abs=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_gradient_checkpointing_changes_nothing(name):
    options = {"img_size": 64} if name.startswith("vit") else {}
    stages = {"resnet18": ["layer2", "layer4"], "vit_tiny_patch16_224": ["blocks.3", "blocks.11"]}.get(
        name, ["stages.1", "stages.3"]
    )
    found = []
    for switched in (False, True):
        network = fill(timm.create_model(name, num_classes=5, **options), 4)
        network.set_grad_checkpointing(switched)
        found.append(told(explainer_of(network, stages, input_size=(64, 64)), size=(64, 64)))
    assert found[0] == found[1]
    assert found[0][0] is not None


def test_checkpointing_in_a_forward_of_ones_own_changes_nothing():
    kept = explainer_of(Net(between=lambda stage, x: checkpoint(stage, x, use_reentrant=False)))
    assert told(kept) == pytest.approx(told(explainer_of(Net())), abs=1e-6)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d, lambda n: nn.GroupNorm(4, n), nn.InstanceNorm2d, lambda n: nn.Identity()]
)
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_autocast_gives_nearly_the_same(norm, where):
    class Cast(Net):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x).float()

    expected = told(explainer_of(Net(norm)))
    explainer = explainer_of(Cast(norm) if where == "inside" else Net(norm))
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "outside"):
        assert told(explainer) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("when", ["explaining", "wrapping", "building", "all", "encoding", "images"])
def test_the_callers_mode_changes_no_answer(mode, when):
    expected = told(explainer_of(Net()))

    def inside(step, function):
        if when not in (step, "all"):
            return function()
        with mode():
            return function()

    module = inside("building", Net)
    explainer = inside("wrapping", lambda: explainer_of(module))
    images = inside("images", lambda: torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(1)))
    if when == "encoding":
        with mode():
            encoding = explainer.encode(images)
        assert explainer.regions(encoding, _pairs()).maps[0].isfinite().all()
    assert inside("explaining", lambda: told(explainer, images)) == pytest.approx(expected, abs=1e-6)


def _pairs():
    from cefam import ConceptPairs

    return ConceptPairs(torch.tensor([0]), torch.tensor([3]))


def exported(unflatten=False):
    program = torch.export.export(Net().eval(), (torch.rand(1, 3, *SIZE),))
    return torch.export.unflatten(program) if unflatten else program.module()


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (exported, "was made by torch.export, and inner maps of an exported network cannot be tapped"),
        (lambda: exported(True), "was made by torch.export, and inner maps of an exported network cannot be tapped"),
        (
            lambda: torch.fx.symbolic_trace(Net().eval()),
            r"It was traced: only inner modules can still be tapped, as a\.0, a\.1",
        ),
    ],
)
def test_exported_and_traced_networks_are_refused(make, advice):
    with pytest.raises(ValueError, match=advice):
        FrozenClassifier(make(), ["a", "b"], input_size=SIZE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_precision_is_said(dtype, tmp_path):
    classifier = load_classifier("brodenette")
    concepts = ConceptSet.brodenette().embed(load_vlm("brodenette"))
    trained = Trained(classifier, Translator(classifier.channels, 64), concepts)
    trained.write(tmp_path / "artefact")
    explainer = trained.explainer()
    images = torch.zeros(1, 3, 96, 96, dtype=torch.uint8)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for use in (
            lambda: Trained.read(tmp_path / "artefact"),
            lambda: explainer.explain(images),
            lambda: explainer.encode(images),
        ):
            with pytest.raises(ValueError, match=f"default precision is {dtype}"):
                use()
    finally:
        torch.set_default_dtype(before)
    assert Trained.read(tmp_path / "artefact").explainer().explain(images, top_k=1)


class Tokens(nn.Module):
    """A small vision transformer: patches by a convolution, an unfolding, or pooling afterwards."""

    def __init__(self, patch=(8, 8), prefix=1, how="convolution", pooled=False):
        super().__init__()
        self.patch, self.how, self.pooled = patch, how, pooled
        if how == "convolution":
            self.patches = nn.Conv2d(3, 12, patch, patch)
        else:
            self.patches, self.embed = nn.Unfold(patch, stride=patch), nn.Linear(3 * patch[0] * patch[1], 12)
            if how == "stated":
                self.patch_size = patch
        self.token = nn.Parameter(torch.randn(1, prefix, 12))
        self.blocks = nn.ModuleList(
            [nn.TransformerEncoderLayer(12, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)]
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        rows, columns = x.shape[-2] // self.patch[0], x.shape[-1] // self.patch[1]
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = tokens if self.how == "convolution" else self.embed(tokens)
        if self.pooled:
            tokens = F.avg_pool2d(tokens.transpose(1, 2).unflatten(2, (rows, columns)), 2).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])


@pytest.mark.parametrize("grid", [(4, 4), (4, 7), (5, 4), (3, 8), (1, 9), (14, 15)])
@pytest.mark.parametrize("patch", [(8, 8), (16, 4)])
@pytest.mark.parametrize("prefix", [1, 5])
def test_tokens_lie_on_the_grid_of_the_patches(grid, patch, prefix):
    size = (grid[0] * patch[0], grid[1] * patch[1])
    for how in ("convolution", "stated"):
        classifier = FrozenClassifier(Tokens(patch, prefix, how), ["blocks.0", "blocks.1"], input_size=size)
        assert [tuple(a.shape[-2:]) for a in classifier(torch.zeros(1, 3, *size)).activations] == [grid] * 2
        assert [stage.num_prefix for stage in classifier.stages] == [prefix] * 2


def test_a_marked_patch_is_marked_in_the_map():
    """Rows and columns in the right order: the map differs at the patch that differs."""
    module = Tokens((8, 8))
    module.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])
    classifier = FrozenClassifier(module, ["blocks.0"], input_size=(24, 64))
    image = torch.zeros(1, 3, 24, 64)
    image[..., 16:24, 40:48] = 1
    difference = (
        (classifier(image).activations[0] - classifier(torch.zeros_like(image)).activations[0]).abs().sum(dim=(0, 1))
    )
    assert difference.nonzero().tolist() == [[2, 5]]


def test_other_sizes_merged_patches_and_networks_that_show_no_grid():
    module = Tokens((8, 8))
    classifier = FrozenClassifier(module, ["blocks.0"], input_size=(32, 56))
    for size, grid in (((32, 56), (4, 7)), ((40, 24), (5, 3)), ((64, 16), (8, 2))):
        assert tuple(classifier(torch.zeros(1, 3, *size)).activations[0].shape[-2:]) == grid
    pooled = FrozenClassifier(Tokens((4, 4), pooled=True), ["blocks.0"], input_size=(32, 48))
    assert tuple(pooled(torch.zeros(1, 3, 32, 48)).activations[0].shape[-2:]) == (4, 6)
    hidden = Tokens((8, 8), how="unfolding")
    with pytest.raises(ValueError, match="the network shows no grid of patches that fits"):
        FrozenClassifier(hidden, ["blocks.0"], input_size=(32, 56))
    stated = FrozenClassifier(hidden, ["blocks.0"], input_size=(32, 56), num_prefix_tokens=1)
    assert tuple(stated(torch.zeros(1, 3, 32, 56)).activations[0].shape[-2:]) == (4, 7)
    with pytest.raises(ValueError, match="without 3 prefix token"):
        FrozenClassifier(hidden, ["blocks.0"], input_size=(32, 56), num_prefix_tokens=3)
