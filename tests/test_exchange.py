"""Other programs' artefacts: read without running them, refused where they hold a program, and written back."""

import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from cefam import ConceptSet, FrozenClassifier, Trained, Translator
from cefam.errors import CefamError
from cefam.exchange.inert import read_pickle
from cefam.exchange.neurons import read_descriptions, read_www, write_descriptions, write_www
from cefam.exchange.published import read_translator
from cefam.methods import MethodContext
from tests.commands import run

WORDS = ["red", "sky", "crane", "wheel", "crane"]


class MapConverter(nn.Module):
    """Has the name and the layers of the published translator's class."""

    def __init__(self, inputs=12, outputs=5, scale=100.0):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(inputs, 7), nn.Linear(7, 6), nn.Linear(6, outputs)
        self.tanh, self.scale, self.bias, self.model_type = nn.Tanh(), scale, 0, "clip"


@pytest.fixture
def context():
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    classifier = FrozenClassifier(nn.Sequential(*layers), stages=["1", "2"], input_size=(16, 16))
    concepts = ConceptSet.from_words(WORDS)
    return MethodContext(Trained(classifier, Translator([4, 8], 5), concepts))


def test_the_published_translator_is_read_without_its_class(tmp_path):
    torch.manual_seed(0)
    module = MapConverter()
    torch.save(module, tmp_path / "translator.pth")
    translator, about = read_translator(tmp_path / "translator.pth", [4, 8])
    assert about == {"scale": 100.0, "bias": 0, "model_type": "clip"}
    z = [torch.randn(3, 4), torch.randn(3, 8)]
    first = torch.tanh(module.fc1(torch.cat([z[1], z[0]], dim=1)))  # deepest stage first
    assert torch.allclose(translator(z), module.fc3(torch.tanh(module.fc2(first))), atol=1e-6)
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    again, about = read_translator(tmp_path / "weights.pth", [4, 8])
    assert about == {}
    assert torch.equal(again.fc1.weight, translator.fc1.weight)


def test_a_translator_of_other_stages_is_refused(tmp_path):
    torch.save(MapConverter(), tmp_path / "translator.pth")
    with pytest.raises(CefamError, match=r"does not fit stages of \[4, 9\] channels"):
        read_translator(tmp_path / "translator.pth", [4, 9])


def test_the_published_translator_is_imported_and_explains(tmp_path, capsys):
    torch.manual_seed(0)
    towers = [
        "--classifier.class_path", "cefam.load_classifier", "--classifier.init_args.name", "brodenette",
        "--vlm.class_path", "cefam.load_vlm", "--vlm.init_args.name", "brodenette", "--concepts", "brodenette",
    ]  # fmt: skip
    module = MapConverter(240, 64)
    torch.save(module, tmp_path / "t.pth")
    files = f"{{all: {tmp_path}/t.pth}}"
    assert run("import", "--kind", "cefam", "--files", files, *towers, "--folder", tmp_path / "a") == 0
    trained = Trained.read(tmp_path / "a")
    assert trained.training == {"imported": "t.pth"}
    encoding = trained.explainer().encode((torch.rand(2, 3, 96, 96) * 255).byte())
    first = torch.tanh(module.fc1(torch.cat(encoding.pooled[::-1], dim=1)))
    torch.testing.assert_close(encoding.embedding, module.fc3(torch.tanh(module.fc2(first))), rtol=1e-4, atol=1e-5)
    torch.save(MapConverter(240, 64, scale=14.3), tmp_path / "t.pth")
    assert run("import", "--kind", "cefam", "--files", files, *towers, "--folder", tmp_path / "b") == 1
    assert "trained with a logit scale of 14.3" in capsys.readouterr().err
    assert run("import", "--kind", "cefam", "--files", files, *towers[:4], "--folder", tmp_path / "b") == 1
    assert "set `--vlm`" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


class Bomb:
    """Runs a command when it is unpickled by Python's own loader."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: [[b]], lambda b: {"a": np.array([b], dtype=object)}])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, wrap):
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(wrap(Bomb(tmp_path / "ran"))))
    with pytest.raises(CefamError, match=r"holds posix\.mkdir, which cefam does not read"):
        read_pickle(tmp_path / "bad.pkl")
    torch.save(wrap(Bomb(tmp_path / "ran")), tmp_path / "bad.pth")
    with pytest.raises(CefamError, match="nothing in it is run"):
        read_pickle(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [
        [1, "a", (2.5, None, True), {"b": {3}}],
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
        [np.float64(2.5), np.array([], dtype=np.int64)],
    ],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_plain_values_come_back(tmp_path, value, protocol):
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(value, protocol))
    found = read_pickle(tmp_path / "v.pkl")
    np.testing.assert_equal(found, value)


def test_pickles_of_numpy_1_are_read(tmp_path):
    content = pickle.dumps(np.arange(3.0), 2).replace(b"numpy._core", b"numpy.core")
    (tmp_path / "v.pkl").write_bytes(content)
    np.testing.assert_equal(read_pickle(tmp_path / "v.pkl"), np.arange(3.0))


def test_tensors_come_back_and_do_not_reach_beyond_their_storage(tmp_path):
    tensors = {"a": torch.arange(12.0).view(3, 4).T, "b": torch.zeros(0, 3), "c": torch.tensor(True)}
    torch.save(tensors, tmp_path / "t.pth")
    found = read_pickle(tmp_path / "t.pth")
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    with zipfile.ZipFile(tmp_path / "t.pth") as good, zipfile.ZipFile(tmp_path / "bad.pth", "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            bad.writestr(name, content[:8] if "/data/" in name else content)
    with pytest.raises(CefamError, match="reaches beyond its storage"):
        read_pickle(tmp_path / "bad.pth")


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04K", pickle.dumps([1, 2])[:-3]])
def test_a_damaged_pickle_is_a_sentence(tmp_path, content):
    (tmp_path / "v.pkl").write_bytes(content)
    with pytest.raises(CefamError, match="cannot be read"):
        read_pickle(tmp_path / "v.pkl")


def test_descriptions_go_out_and_come_back(context, tmp_path):
    text = "layer,unit,description,similarity\nconv1,0,sky,0.9\n1,0,red-c,0.5\n1,3,crane,0.25\n2,7,wheel,0.125\n"
    (tmp_path / "descriptions.csv").write_text(text)
    found = read_descriptions(tmp_path / "descriptions.csv", context)
    assert sorted(zip(found.stage.tolist(), found.channel.tolist(), found.concept.tolist(), strict=True)) == [
        (0, 0, 0), (0, 3, 2), (0, 3, 4), (1, 7, 3),
    ]  # fmt: skip
    write_descriptions(found, tmp_path / "again.csv")
    again = read_descriptions(tmp_path / "again.csv", context)
    assert torch.equal(again.best(4).score.sort().values, found.best(4).score.sort().values)
    stored = type(found).read(found.write(tmp_path / "a"))
    assert stored.about == found.about
    assert torch.equal(stored.score, found.score)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,0,zebra,0.5", "line 2: 'zebra' is not in the concept set"),
        ("1,4,sky,0.5", "line 2: 1 has no unit 4, it has 4"),
        ("1,x,sky,0.5", "line 2: invalid literal"),
        ("conv1,0,sky,0.5", "describes no neuron of the stages 1, 2"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(context, tmp_path, line, message):
    (tmp_path / "d.csv").write_text(f"layer,unit,description,similarity\n{line}\n")
    with pytest.raises(CefamError, match=message):
        read_descriptions(tmp_path / "d.csv", context)


def test_pickles_of_www_go_out_and_come_back(context, tmp_path):
    words = [["sky", "red"], [], ["wheel"], []]
    weights = [np.array([2.0, 1.5]), np.array([]), np.array([0.5]), np.array([])]
    (tmp_path / "www.pkl").write_bytes(pickle.dumps((words, weights)))
    found = read_www({"1": tmp_path / "www.pkl"}, context)
    assert sorted(zip(found.channel.tolist(), found.concept.tolist(), found.score.tolist(), strict=True)) == [
        (0, 0, 1.5), (0, 1, 2.0), (2, 3, 0.5),
    ]  # fmt: skip
    paths = write_www(found, tmp_path / "out")
    assert [path.name for path in paths] == ["www_1.pkl", "www_2.pkl"]
    with io.BytesIO(paths[0].read_bytes()) as stream:
        again_words, again_weights = pickle.load(stream)
    assert again_words == words
    np.testing.assert_equal(again_weights, weights)
    with pytest.raises(CefamError, match="holds 4 neurons, 2 has 8"):
        read_www({"2": tmp_path / "www.pkl"}, context)
    for content in ([1, 2], 5, (words, [["a"]] * 4), (words, weights[:2])):
        (tmp_path / "other.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(CefamError, match="does not hold the words and weights"):
            read_www({"1": tmp_path / "other.pkl"}, context)
    with pytest.raises(CefamError, match="has no stage '3'"):
        read_www({"3": tmp_path / "www.pkl"}, context)
