"""FrozenClassifier over real architectures: layouts, running on from a stage, cuts, and what is refused."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from cefam import FrozenClassifier, load_classifier
from cefam.towers.candidates import chosen_by_resolution, stage_candidates
from cefam.towers.stages import StageContext
from cefam.towers.zoo import read_state_dict
from tests.conftest import fill

FAMILIES = [
    ("resnet18", 64, [64, 128, 256, 512], "channels_first"),
    ("resnet50", 64, [256, 512, 1024, 2048], "channels_first"),
    ("vit_b_16", 224, [768], "tokens"),
    ("convnext_tiny", 64, [96, 192, 384, 768], "channels_first"),
    ("efficientnet_b0", 64, [24, 40, 112, 1280], "channels_first"),
    ("swin_t", 64, [96, 192, 384, 768], "channels_last"),
    ("timm:resnet18", 64, [64, 128, 256, 512], "channels_first"),
    ("timm:tf_efficientnet_lite0", 64, [24, 40, 112, 1280], "channels_first"),
    ("timm:vit_tiny_patch16_224", 224, [192], "tokens"),
    ("timm:swin_tiny_patch4_window7_224", 224, [96, 192, 384, 768], "channels_last"),
    ("timm:convnext_tiny", 64, [96, 192, 384, 768], "channels_first"),
]


@pytest.mark.parametrize(("name", "size", "channels", "layout"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_every_family_is_cut_and_run_on_from_its_stages(name, size, channels, layout):
    torch.manual_seed(0)
    classifier = load_classifier(name, weights=None)
    fill(classifier.module, 1)
    images = torch.rand(2, 3, size, size)
    output = classifier(images)
    direct = classifier.module(classifier.preprocessing(images))
    torch.testing.assert_close(output.logits, direct)
    assert [a.shape[1] for a in output.activations] == classifier.channels == channels
    for index, (stage, activation) in enumerate(zip(classifier.stages, output.activations, strict=True)):
        assert (stage.layout, stage.resumable) == (layout, True)
        assert activation.dim() == 4
        assert activation.shape[2] == activation.shape[3] > 1
        torch.testing.assert_close(classifier.resume(index, activation, output.context), output.logits)
        context = [StageContext(None if c.prefix is None else -c.prefix) for c in output.context]
        changed = classifier.resume(index, activation.flip(1), context)
        assert not torch.allclose(changed, output.logits, rtol=1e-3, atol=0)


def test_vit_tokens_become_the_grid_they_came_from():
    module = torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=5)
    classifier = FrozenClassifier.from_module(
        module, ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]
    )
    images = torch.rand(1, 3, 64, 64)
    tokens = []
    module.encoder.layers[0].register_forward_hook(lambda m, i, o: tokens.append(o))
    module.encoder.ln.register_forward_hook(lambda m, i, o: tokens.append(o))
    output = classifier(images)
    for activation, expected, context in zip(output.activations, tokens[:2], output.context, strict=True):
        # the intermediate block as it is, the last one after the final norm; class token first, then row by row
        torch.testing.assert_close(activation.flatten(2).transpose(1, 2), expected[:, 1:])
        torch.testing.assert_close(context.prefix[..., 0], expected[:, 0])
    assert output.context[0].before_norm is None
    before = output.context[1].before_norm.permute(0, 2, 3, 1)
    torch.testing.assert_close(module.encoder.ln(before).permute(0, 3, 1, 2), output.activations[1])


def test_tokens_of_images_that_are_not_square():
    module = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True)
    classifier = FrozenClassifier.from_module(module, ["blocks.11"])
    assert classifier(torch.rand(1, 3, 96, 160)).activations[0].shape == (1, 192, 6, 10)


def test_registers_are_prefix_tokens():
    module = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=3, img_size=70)
    classifier = FrozenClassifier.from_module(module, ["blocks.11"])
    output = classifier(torch.rand(1, 3, 70, 70))
    assert classifier.stages[0].num_prefix == 5
    torch.testing.assert_close(classifier.resume(0, output.activations[0], output.context), output.logits)


class Bypass(nn.Module):
    """A skip connection from the first stage to the head, around the second."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        a = self.one(x)
        return self.head((a + self.two(a)).mean(dim=(2, 3)))


def test_a_stage_that_is_by_passed_is_found_and_refused():
    classifier = FrozenClassifier.from_module(Bypass(), ["one", "two"], input_size=(8, 8))
    output = classifier(torch.rand(2, 3, 8, 8))
    assert [stage.resumable for stage in classifier.stages] == [True, False]
    torch.testing.assert_close(classifier.resume(0, output.activations[0]), output.logits)
    with pytest.raises(ValueError, match=r"Stage 'two' is not a cut .* choose another stage"):
        classifier.resume(1, output.activations[1])


class InPlace(nn.Module):
    """What follows the stage works in place on its output."""

    def __init__(self):
        super().__init__()
        self.one, self.relu, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.relu(self.one(x)).mean(dim=(2, 3)))


def test_in_place_layers_do_not_reach_the_captured_map():
    module = InPlace()
    classifier = FrozenClassifier.from_module(module, ["one"], input_size=(8, 8))
    images = torch.rand(2, 3, 8, 8)
    activation = classifier(images).activations[0]
    torch.testing.assert_close(activation, module.one(images))
    assert (activation < 0).any()


def test_nothing_is_left_on_the_module():
    classifier = load_classifier("resnet18", weights=None)
    output = classifier(torch.rand(1, 3, 64, 64))
    classifier.resume(1, output.activations[1])
    classifier.rerun(output, torch.rand(1, 3, 64, 64), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="belongs to another stage"):
        classifier.resume(1, output.activations[2])
    for module in classifier.module.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in module.__dict__


@pytest.mark.parametrize("fold", [True, False])
def test_frozen_means_frozen(fold):
    module = torchvision.models.resnet18(weights=None)
    classifier = FrozenClassifier(module, ["layer4"], fold=fold)
    before = {name: value.clone() for name, value in classifier.module.state_dict().items()}
    classifier.train()
    classifier(torch.rand(2, 3, 64, 64))
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())
    assert all(torch.equal(value, before[name]) for name, value in classifier.module.state_dict().items())


@pytest.mark.parametrize(
    ("stages", "advice"),
    [
        (["layer5"], "no module 'layer5'. Did you mean 'layer4'"),
        ([], "at least one stage"),
        (["layer2", "layer1"], "in the order they run: \\['layer1', 'layer2'\\]"),
        (["fc"], "a stage must return a map"),
    ],
)
def test_impossible_stages_are_refused(stages, advice):
    with pytest.raises(ValueError, match=advice):
        load_classifier("resnet18", weights=None, stages=stages)


def test_a_stage_that_runs_twice_is_refused():
    module = torchvision.models.resnet18()
    with pytest.raises(ValueError, match="ran 2 times"):
        FrozenClassifier.from_module(module, ["layer1.0.relu"])


def test_a_layout_is_not_guessed_from_an_image_that_is_not_square():
    with pytest.raises(ValueError, match="FrozenClassifier its `layout`"):
        load_classifier("swin_t", weights=None, input_size=(224, 320))


def test_a_family_without_usual_stages_gets_the_last_of_each_resolution(caplog):
    stages = ["features.9", "features.14", "features.19", "avgpool"]
    assert load_classifier("vgg11", weights=None).stage_names == stages
    assert "No usual stages are known for vgg11" in caplog.text


def test_the_stage_of_a_transformer_is_its_last_block():
    for name, last in (("vit_tiny_patch16_224", "blocks.11"), ("mixer_s32_224", "blocks.7")):
        assert chosen_by_resolution(stage_candidates(timm.create_model(name))) == [last]
    assert chosen_by_resolution(stage_candidates(torchvision.models.vit_b_32())) == ["encoder.layers.encoder_layer_11"]


def test_the_stages_of_a_windowed_transformer_are_maps():
    found = stage_candidates(timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)))
    assert chosen_by_resolution(found) == ["layers.0", "layers.1", "layers.2", "norm"]


def test_stages_are_found_in_double_precision_and_training_mode():
    module = torchvision.models.resnet18(num_classes=2).double()
    assert chosen_by_resolution(stage_candidates(module)) == ["layer1", "layer2", "layer3", "layer4"]
    assert module.layer1.training


def test_a_module_that_gives_a_number_or_runs_twice_is_no_stage():
    class Losing(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again, self.loss = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MSELoss()

        def forward(self, images):
            maps = self.again(self.again(self.first(images)))
            self.loss(maps, maps)  # a number
            return maps.mean(dim=(2, 3))

    assert [each.name for each in stage_candidates(Losing())] == ["first"]


def test_stages_of_a_network_of_one_channel_ask_for_the_input_size():
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"takes 1 channel\(s\), the images have 3"):
        stage_candidates(module)


def test_weights_of_timm_for_imagenet_bring_its_class_names(tmp_path):
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "weights.pth")
    assert load_classifier("timm:resnet18", weights=str(tmp_path / "weights.pth")).class_names[282] == "tiger cat"
    assert load_classifier("timm:resnet18", weights=None).class_names is None


def test_class_names_must_be_those_of_the_classes():
    with pytest.raises(ValueError, match="has 10 classes, but 2 class_names were given"):
        FrozenClassifier(torchvision.models.resnet18(num_classes=10), ["layer1"], class_names=["cat", "dog"])


def test_a_wrong_input_size_is_said():
    module = torchvision.models.vit_b_16()
    with pytest.raises(ValueError, match="pass the size it wants as `input_size`"):
        FrozenClassifier.from_module(module, ["encoder.layers.encoder_layer_11"], input_size=(100, 100))


def test_a_missing_context_is_said():
    classifier = load_classifier("timm:vit_tiny_patch16_224", weights=None)
    with pytest.raises(ValueError, match="pass the context"):
        classifier.resume(0, torch.rand(1, 192, 14, 14))


@pytest.mark.parametrize(
    ("name", "weights", "error", "advice"),
    [
        ("resnet51", None, ValueError, "Did you mean 'resnet50'"),
        ("timm:resnet51", None, ValueError, "timm has no architecture 'resnet51'. Did you mean"),
        ("resnet18", "IMAGENET1K_V9", ValueError, "IMAGENET1K_V1, DEFAULT"),
        ("resnet18", "nowhere.pth", FileNotFoundError, "no weights file nowhere.pth"),
        ("resnet18", "IMAGENET1K_V1", FileNotFoundError, "Put the file resnet18-f37072fd.pth into"),
        ("timm:resnet18", "a1_in1k", FileNotFoundError, "name a local state dict"),
    ],
)
def test_loading_errors_say_what_to_do(name, weights, error, advice, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=advice):
        load_classifier(name, weights)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_local_file(tmp_path, suffix):
    from safetensors.torch import save_file

    torch.manual_seed(3)
    state = torchvision.models.resnet18(num_classes=7).state_dict()
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    classifier = load_classifier("resnet18", str(path), num_classes=7, class_names=list("abcdefg"))
    assert torch.equal(classifier.module.fc.weight, state["fc.weight"])
    assert classifier.source["init_args"]["weights"] == str(path)
    with pytest.raises(ValueError, match="do not fit the architecture"):
        load_classifier("resnet34", str(path), num_classes=7)
    with pytest.raises(ValueError, match="do not fit the architecture"):
        load_classifier("resnet18", str(path))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_broken_weights_are_refused(tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="truncated, empty, or holds a pickled object"):
        read_state_dict(path)


def test_a_pickled_module_is_not_run(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"Save `model.state_dict\(\)`"):
        read_state_dict(tmp_path / "module.pth")


def test_the_fingerprint_tells_weights_and_stages_apart():
    torch.manual_seed(0)
    module = torchvision.models.resnet18()
    one = FrozenClassifier.from_module(module, ["layer4"])
    other = FrozenClassifier.from_module(module, ["layer3"])
    assert one.fingerprint != other.fingerprint
    with torch.no_grad():
        module.fc.bias[0] += 1
    assert FrozenClassifier.from_module(module, ["layer4"]).fingerprint != one.fingerprint
    assert one.to(torch.bfloat16).fingerprint == one.fingerprint  # known before it was moved


class Attending(nn.Module):
    """In front of its stage, a module that gives more than tensors."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 5)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens, nothing = self.attention(tokens, tokens, tokens, need_weights=False)
        assert nothing is None
        return self.head(self.last(tokens.transpose(1, 2).unflatten(2, (4, 4))).mean(dim=(2, 3)))


def test_what_stands_before_a_stage_may_give_more_than_tensors():
    classifier = FrozenClassifier(fill(Attending(), 3), ["last"], input_size=(16, 16))
    output = classifier(torch.rand(2, 3, 16, 16))
    assert classifier.stages[0].resumable
    torch.testing.assert_close(classifier.resume(0, output.activations[0]), output.logits)


def test_usual_stages_of_timm_are_modules():
    assert load_classifier("timm:twins_svt_small", weights=None).stage_names == ["blocks.3.3"]


def test_a_vision_transformer_of_torchvision_takes_views_of_any_size():
    classifier = load_classifier("vit_b_32", weights=None)
    output = classifier(torch.rand(1, 3, 64, 80))
    assert output.activations[0].shape == (1, 768, 7, 7)
