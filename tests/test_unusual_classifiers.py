"""Classifiers as people have them: other outputs, precisions, channels, wrappers, in-place layers, tuples, checkpoints."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from cefam import ConceptPairs, Explainer, FrozenClassifier, Translator, load_classifier
from cefam.towers.outputs import log_probabilities
from tests.conftest import fill

TEXT = F.normalize(torch.randn(30, 16, generator=torch.Generator().manual_seed(0)), dim=1)


class Ending(nn.Module):
    """A small network with an end of its own."""

    def __init__(self, classes, end=None):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 12, 3, 2)
        self.fc, self.end = nn.Linear(12, classes), end or (lambda y: y)
        fill(self, 3)

    def forward(self, x):
        x = self.two(self.one(x).relu()).relu()
        return self.end(3 * self.fc(x.mean(dim=(2, 3))))


def explained(module, stages=("one", "two"), images=None, **options):
    """Classifier and one explanation of a small network."""
    classifier = FrozenClassifier.from_module(module.eval(), list(stages), input_size=(32, 32), **options)
    translator = fill(Translator(classifier.channels, 16, [10, 10]), 5).eval()
    explainer = Explainer.from_tensors(classifier, translator, TEXT, logit_scale=10.0)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) if images is None else images
    return classifier, explainer.explain(images, top_k=4)


ENDS = {
    "logits": (5, None, "softmax"),
    "softmax": (5, lambda y: y.softmax(dim=1), "probabilities"),
    "softmax, reshaped": (5, lambda y: y.softmax(dim=1).view(len(y), -1).clone(), "probabilities"),
    "log-softmax": (5, lambda y: y.log_softmax(dim=1), "softmax"),
    "one logit": (1, None, "sigmoid"),
    "one probability": (1, torch.sigmoid, "probabilities"),
    "many sigmoids": (5, torch.sigmoid, "probabilities"),
    "one minus sigmoid": (1, lambda y: 1 - (-y).sigmoid(), "probabilities"),
    "clamped": (5, lambda y: y.sigmoid().clamp(1e-6, 1 - 1e-6), "probabilities"),
    "without a graph": (5, lambda y: y.detach().softmax(dim=1), "probabilities"),
}


@pytest.mark.parametrize("name", ENDS)
def test_outputs_are_told_and_never_squashed_twice(name):
    classes, end, kind = ENDS[name]
    module = Ending(classes, end)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    classifier, found = explained(module, images=images)
    assert classifier.outputs == kind
    with torch.no_grad():
        logits = 3 * module.fc(module.two(module.one(images).relu()).relu().mean(dim=(2, 3)))
    if classes == 1:
        positive = logits.sigmoid()
        probabilities = torch.cat([1 - positive, positive], dim=1)
    else:
        probabilities = logits.sigmoid() if name in ("many sigmoids", "clamped") else logits.softmax(dim=1)
    for index, explanation in enumerate(found):
        assert explanation.probability == pytest.approx(float(probabilities[index].max()), rel=1e-5)
        assert explanation.target == int(probabilities[index].argmax())
        if name != "without a graph":
            assert any(abs(part.contribution) > 1e-6 for part in explanation.concepts)


def test_a_contribution_is_the_fall_of_the_class_own_probability():
    """Of a network that ends in softmax it is that of its logits; of one logit, that of both classes."""
    pairs = ConceptPairs(torch.tensor([0, 0]), torch.tensor([3, 7]))
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    values = []
    for end in (None, lambda y: y.softmax(dim=1)):
        classifier = FrozenClassifier.from_module(Ending(5, end).eval(), ["one", "two"], input_size=(32, 32))
        translator = fill(Translator(classifier.channels, 16, [10, 10]), 5).eval()
        explainer = Explainer.from_tensors(classifier, translator, TEXT, logit_scale=10.0)
        values.append(explainer.contribution(images, pairs, target=2, num_channels=5).curve)
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-5)
    classifier = FrozenClassifier.from_module(Ending(1).eval(), ["one", "two"], input_size=(32, 32))
    explainer = Explainer.from_tensors(classifier, translator, TEXT, logit_scale=10.0)
    curves = [explainer.contribution(images, pairs, target=t, num_channels=5).curve for t in (0, 1)]
    before = classifier.probabilities(classifier(images).logits)[0]
    for n in range(6):  # what one class loses the other gains
        torch.testing.assert_close(before[0] * curves[0][:, n], -before[1] * curves[1][:, n], rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="no class 2: there are 2"):
        explainer.contribution(images, pairs, target=2)


def test_the_user_may_say_what_outputs_mean():
    classifier, _ = explained(Ending(5), outputs="sigmoid")
    logits = torch.tensor([[0.0, 2.0, -1.0, 0.5, 3.0]])
    torch.testing.assert_close(classifier.probabilities(logits), logits.double().sigmoid())
    with pytest.raises(ValueError, match="outputs must be 'softmax' or 'sigmoid' or 'probabilities', got 'logit'"):
        explained(Ending(5), outputs="logit")
    assert log_probabilities(torch.tensor([[0.0, 1.0]]), "probabilities").isfinite().all()


@pytest.mark.parametrize(
    "act", [F.relu, lambda x: F.relu(x, inplace=True), lambda x: x.relu_(), nn.ReLU(inplace=True), lambda x: x.mul_(2)]
)
@pytest.mark.parametrize("norm", [False, True])
def test_a_cut_is_a_cut_however_its_activation_is_written(act, norm):
    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.c1, self.c2, self.c3 = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2), nn.Conv2d(8, 8, 3, 2)
            self.n1, self.n2, self.n3 = (nn.BatchNorm2d(8) if norm else nn.Identity() for _ in range(3))
            self.fc, self.act = nn.Linear(8, 4), act

        def forward(self, x):
            for conv, bn in ((self.c1, self.n1), (self.c2, self.n2), (self.c3, self.n3)):
                x = self.act(bn(conv(x)))
            return self.fc(x.mean(dim=(2, 3)))

    module = fill(Chain(), 4).eval()
    images = torch.rand(2, 3, 40, 40)
    expected = module(images.clone())
    classifier = FrozenClassifier.from_module(module, ["c1", "c2", "c3"], input_size=(40, 40))
    assert [stage.resumable for stage in classifier.stages] == [True] * 3
    output = classifier(images)
    before = [activation.clone() for activation in output.activations]
    for stage in range(3):
        torch.testing.assert_close(classifier.resume(stage, output.activations[stage]), expected, rtol=1e-4, atol=1e-5)
        again = classifier.rerun(output, images, torch.tensor([1]), first=stage)
        torch.testing.assert_close(again.logits, expected[1:], rtol=1e-4, atol=1e-5)
        assert len(again.activations) == 3 - stage
    assert all(map(torch.equal, before, output.activations))


class Wrapper(nn.Module):
    """A network in another one."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_final_norm_is_found_in_a_wrapped_transformer(library):
    if library == "timm":
        net, block = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=5), "blocks"
        last, inner = "blocks.2", "blocks.1"
    else:
        net = torchvision.models.VisionTransformer(32, 8, 3, 2, 24, 32, num_classes=5)
        block = "encoder.layers"
        last, inner = f"{block}.encoder_layer_2", f"{block}.encoder_layer_1"
    net = fill(net, 6).eval()
    images = torch.rand(2, 3, 32, 32)
    bare = FrozenClassifier.from_module(net, [inner, last], input_size=(32, 32))
    wrapped = FrozenClassifier.from_module(Wrapper(net), [f"net.{inner}", f"net.{last}"], input_size=(32, 32))
    assert [stage.tap == stage.name for stage in wrapped.stages] == [True, False]
    for one, other in zip(bare(images).activations, wrapped(images).activations, strict=True):
        torch.testing.assert_close(one, other)
    assert wrapped(images).context[1].before_norm is not None


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
def test_other_precisions_work(dtype):
    _, expected = explained(Ending(5))
    classifier, found = explained(Ending(5).to(dtype))
    assert classifier.dtype == dtype
    assert [stage.resumable for stage in classifier.stages] == [True, True]
    tolerance = 1e-6 if dtype == torch.double else 0.05
    assert found[0].probability == pytest.approx(expected[0].probability, rel=tolerance)
    assert all(part.region.dtype == torch.float32 for part in found[0].concepts)


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda: torch.jit.trace(Ending(5).eval(), torch.rand(1, 3, 32, 32)), "The classifier is TorchScript"),
        (
            lambda: Wrapper(torch.jit.trace(Ending(5).eval(), torch.rand(1, 3, 32, 32))),
            "Its module 'net' is TorchScript",
        ),
        (lambda: Wrapper(torch.compile(Ending(5))), "Its module 'net' is compiled"),
        (
            lambda: torch.ao.quantization.quantize_dynamic(Ending(5).eval(), {nn.Linear}, dtype=torch.qint8),
            "Its module 'fc' is quantized",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_cannot_be_tapped_is_said_in_one_sentence(make, advice):
    with pytest.raises(ValueError, match=advice):
        FrozenClassifier.from_module(make(), ["one"], input_size=(32, 32))


def test_a_compiled_classifier_is_taken_as_it_was_before():
    classifier, _ = explained(torch.compile(Ending(5).eval()))
    assert classifier.stage_names == ["one", "two"]


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channel_counts_work_where_the_user_says_how_many(channels):
    def net():
        torch.manual_seed(0)
        layers = [nn.Conv2d(channels, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4)).eval()

    images = torch.rand(2, channels, 64, 64)
    with pytest.raises(
        ValueError, match=rf"takes {channels} channel\(s\), the images have 3: pass `input_size=\({channels}, 64"
    ):
        FrozenClassifier.from_module(net(), ["0", "2"], input_size=(64, 64))
    classifier = FrozenClassifier.from_module(net(), ["0", "2"], input_size=(channels, 64, 64))
    torch.testing.assert_close(classifier(images).logits, net()(images))
    if channels == 1:  # photographs are in color; a grey network sees their luminance
        assert classifier((torch.rand(2, 3, 64, 64) * 255).byte()).logits.shape == (2, 4)


class Told(nn.Module):
    """A network that returns its logits in a structure."""

    def __init__(self, how):
        super().__init__()
        self.net, self.how = Ending(5), how

    def forward(self, x):
        return self.how(self.net(x))


class Output:
    """What a Hugging Face model returns."""

    def __init__(self, logits):
        self.loss, self.logits = None, logits


@pytest.mark.parametrize(
    "how",
    [
        Output,
        lambda y: {"aux": y * 2, "logits": y},
        lambda y: (y, y * 2),
        lambda y: [None, y],
        lambda y: {"out": y},
    ],
)
def test_logits_are_found_in_what_a_classifier_returns(how):
    module = Told(how).eval()
    images = torch.rand(2, 3, 32, 32)
    classifier = FrozenClassifier.from_module(module, ["net.one", "net.two"], input_size=(32, 32))
    expected = module.net(images)
    output = classifier(images)
    torch.testing.assert_close(output.logits, expected)
    torch.testing.assert_close(classifier.resume(1, output.activations[1]), expected)
    with pytest.raises(ValueError, match="must return logits"):
        FrozenClassifier.from_module(Told(lambda y: "no").eval(), ["net.one"], input_size=(32, 32))


def test_stages_that_return_tuples_are_tapped_at_their_first_tensor():
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 1, 1], num_heads=[2, 2, 2], window_size=4, num_labels=5
    )
    torch.manual_seed(0)
    module = transformers.SwinForImageClassification(config).eval()
    stages = [f"swin.encoder.layers.{index}" for index in range(3)]
    images = torch.rand(2, 3, 32, 32)
    classifier = FrozenClassifier.from_module(module, stages, input_size=(32, 32))
    assert classifier.channels == [16, 32, 32]
    output = classifier(images)
    torch.testing.assert_close(output.logits, module(images).logits)
    assert [tuple(a.shape[-2:]) for a in output.activations] == [(8, 8), (4, 4), (4, 4)]
    assert [stage.resumable for stage in classifier.stages] == [True] * 3
    _, found = explained(module, stages)
    assert all(part.contribution is not None for part in found[0].concepts)


@pytest.mark.parametrize("wrap", ["state_dict", "model_state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod.", ""])
def test_checkpoints_as_people_have_them(wrap, prefix, tmp_path, caplog):
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    saved = {f"{prefix}{name}": value for name, value in state.items()}
    saved = {wrap: saved, "epoch": 3} if wrap else saved
    torch.save(saved, tmp_path / "c.pth")
    classifier = load_classifier("resnet18", str(tmp_path / "c.pth"), num_classes=3)
    assert torch.equal(classifier.unfolded().module.fc.weight, state["fc.weight"])
    assert (f"{prefix!r} of all names" in caplog.text) == bool(prefix)
    assert (f"entry {wrap!r}" in caplog.text) == bool(wrap)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_grad_mode_does_not_matter(mode):
    module = Ending(1, torch.sigmoid).eval()
    with mode():
        classifier = FrozenClassifier.from_module(module, ["one", "two"], input_size=(32, 32))
    assert classifier.outputs == "probabilities"


@pytest.mark.parametrize("act", [lambda x: x.sub_(0.5), lambda x: x.relu_(), nn.ReLU(inplace=True)])
def test_a_network_that_changes_its_input_leaves_the_callers_images_alone(act):
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.act = Ending(5), act

        def forward(self, x):
            return self.net(self.act(x))

    classifier = FrozenClassifier.from_module(First().eval(), ["net.one", "net.two"], input_size=(32, 32))
    assert [stage.resumable for stage in classifier.stages] == [True, True]
    images = torch.rand(2, 3, 32, 32)
    before = images.clone()
    output = classifier(images)
    assert torch.equal(images, before)
    torch.testing.assert_close(classifier.resume(1, output.activations[1]), output.logits)
    torch.testing.assert_close(output.logits, Ending(5).eval()(act(before.clone())))


@pytest.mark.parametrize("between", ["dropout", "sequence", "keyword"])
def test_the_final_norm_is_found_however_it_is_reached(between):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 12, 8, 8)
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(12, 2, 16, batch_first=True) for _ in range(2))
            self.drop, self.norm, self.head = nn.Dropout(0.5), nn.LayerNorm(12), nn.Linear(12, 5)
            self.sequence = nn.Sequential(self.norm, nn.Identity())

        def forward(self, x):
            x = self.patch(x).flatten(2).transpose(1, 2)
            for block in self.blocks:
                x = block(x)
            ends = {
                "dropout": lambda: self.norm(self.drop(x)),
                "sequence": lambda: self.sequence(x),
                "keyword": lambda: self.norm(input=x),
            }
            return self.head(ends[between]().mean(dim=1))

    torch.manual_seed(0)
    classifier = FrozenClassifier.from_module(Tokens().eval(), ["blocks.0", "blocks.1"], input_size=(32, 32))
    assert [stage.tap == stage.name for stage in classifier.stages] == [True, False]
    context = classifier(torch.rand(2, 3, 32, 32)).context
    assert context[0].before_norm is None
    assert context[1].before_norm.shape == (2, 12, 4, 4)


def test_the_view_for_libraries_takes_what_the_classifier_takes():
    for module, images in (
        (Ending(5).double(), torch.rand(2, 3, 32, 32)),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.rand(2, 3, 32, 32)),
    ):
        stages = ["one"] if isinstance(module, Ending) else ["0"]
        size = (32, 32) if isinstance(module, Ending) else (1, 32, 32)
        classifier = FrozenClassifier.from_module(module.eval(), stages, input_size=size)
        torch.testing.assert_close(classifier.unfolded()(images), classifier(images).logits)


def test_a_probe_that_fails_is_said_as_it_is():
    class Two(nn.Module):
        def forward(self, x, y):
            return x

    with pytest.raises(ValueError, match="missing 1 required positional argument"):
        _probe_of(Two())
    with pytest.raises(ValueError, match=r"^The classifier must return logits"):
        _probe_of(Told(lambda y: "no"), "net.one")


def _probe_of(module, stage="inner"):
    if stage == "inner":
        module.inner = nn.Identity()
    return FrozenClassifier.from_module(module.eval(), [stage], input_size=(32, 32))
