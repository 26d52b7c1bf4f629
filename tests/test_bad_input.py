"""Bad inputs x commands: a sentence that names what is wrong, a status that is not 0, nothing half-written."""

import re
import resource

import numpy as np
import pytest
import yaml
from PIL import Image

from cefam import ConceptSet, Trained, load_classifier
from cefam.datasets import read_shard
from cefam.datasets.features import load_features
from cefam.errors import CefamError
from tests import broken as broken_things
from tests.commands import RESULTS, csv_logger, good_call, images_data, run

TOWER = "--model.classifier.init_args."
VLM = "--model.vlm.init_args."
DATA = "--data.init_args."
RESUMED = "--ckpt_path={trained}/log/checkpoints/last.ckpt"

# Verb, what is changed in a good call, what the sentence must say, and the exit status.
CASES = {
    # Names
    "unknown model": ("fit", [TOWER + "name=resnet81"], "Did you mean 'resnet"),
    "unknown timm model": ("fit", [TOWER + "name=timm:resnt50"], "timm has no architecture 'resnt50'. Did you mean"),
    "unknown stage": ("fit", [TOWER + "stages=[layer9]"], "no module 'layer9'. Did you mean 'layer"),
    "stage twice": ("fit", [TOWER + "stages=[layer1, layer1]"], "layer1"),
    "stages against their order": ("fit", [TOWER + "stages=[layer4, layer1]"], "order"),
    "unknown VLM": (
        "fit",
        ["--model.vlm={class_path: cefam.load_vlm, init_args: {name: ViT-B-61, pretrained: openai, config: null}}"],
        "open_clip has no model 'ViT-B-61'. Did you mean 'ViT-B-16'",
    ),
    "unknown concepts": ("fit", ["--model.concepts=brodn"], "Did you mean 'broden' or"),
    "unknown data": ("fit", ["--data=ImageData"], "Did you mean 'ImagesData'", 2),
    "wrong value of the data": (
        "fit",
        [DATA + "batch_size=abc"],
        "'cefam.datamodules.FeaturesData': Parser key \"batch_size\": Expected a <class 'int'>",
        2,
    ),
    "unknown option of the data": ("fit", [DATA + "batchsize=8"], "Did you mean 'batch_size'", 2),
    "unknown option": ("fit", ["--model.similarty_weight=1"], "Did you mean '--model.similarity_weight'", 2),
    "unknown key in a config": ("fit", ["--config={broken}/unknown_key.yaml"], "Did you mean '--model.similarity_w", 2),
    "unknown config": ("fit", ["--config=train/feature"], "Did you mean 'train/features'"),
    "config that is no YAML": ("fit", ["--config={broken}/no_yaml.yaml"], "no_yaml.yaml is not YAML"),
    "empty config": ("fit", ["--config={broken}/empty.yaml"], "empty.yaml is empty"),
    "config that is a list": ("fit", ["--config={broken}/list.yaml"], "list.yaml is not a mapping"),
    "config with a key twice": ("fit", ["--config={broken}/twice.yaml"], "line 2: the key 'trainer' is repeated"),
    "config in Latin-1": ("fit", ["--config={broken}/latin.yaml"], "latin.yaml is not UTF-8 text"),
    "unknown config, in short": ("fit", ["-c", "train/feature"], "Did you mean 'train/features'"),
    "unknown metric to stop by": (
        "fit",
        ["--early_stopping.monitor=val/los"],
        "is 'val/los', which is not logged. Did you mean 'val/loss'",
    ),
    "unknown metric to keep the best by": (
        "fit",
        ["--checkpoint.monitor=val/los"],
        "`checkpoint.monitor` is 'val/los'",
    ),
    "unknown preset": ("fit", ["--model.preset=official"], "'published', 'paper'", 2),
    "unknown derivative": ("evaluate", ["--model.derivative=ful"], "'total', 'branch'", 2),
    "unknown method": ("evaluate", ["--model.methods.x=CenterRegion"], "Did you mean 'CenterRegions'", 2),
    "unknown option of a method": (
        "evaluate",
        ["--model.methods.x={class_path: CEFAMRegions, init_args: {derivativ: total}}"],
        "Did you mean 'derivative'",
        2,
    ),
    "no method": ("evaluate", ["--model.methods={}"], "There is no method to measure"),
    "unknown kind": ("prepare", ["--kind=brodn"], "kind must be one of 'images', 'broden', 'brodenette'"),
    "unknown split": ("prepare", ["--kind=brodenette", "--source=vall"], "Did you mean 'val'?"),
    "unknown mask category": ("prepare", ["--kind=brodenette", "--source=val", "--masks=[colour]"], "color, object"),
    "unknown device": ("features", ["--device=gpuu"], "There is no device 'gpuu'"),
    # Numbers
    "text for a number": ("fit", ["--trainer.max_epochs=many"], "many", 2),
    "no epoch scenes": ("demo", ["--scenes=0"], "scenes must be at least 1, got 0"),
    "negative views": ("features", ["--views=-1"], "views must be 0"),
    "batch of nothing": ("features", ["--batch_size=0"], "batch_size"),
    "view of nothing": ("features", ["--size=0"], "positive"),
    "shards of nothing": ("prepare", ["--samples_per_shard=0"], "samples_per_shard must be positive"),
    "count of nothing": ("prepare", ["--kind=brodenette", "--source=val", "--count=0"], "count must be at least 1"),
    "batch larger than the cache": ("fit", [DATA + "batch_size=4000"], "which makes no batch of 4000"),
    "training batch of nothing": ("fit", [DATA + "batch_size=0"], "set a positive `data.init_args.batch_size`"),
    "no candidates": ("evaluate", ["--model.num_candidates=0"], "num_candidates must be at least 1"),
    "no channels": ("evaluate", ["--model.num_channels=0"], "num_channels"),
    "negative channels": ("evaluate", ["--model.num_channels=-1"], "num_channels must be at least 1, got -1"),
    "endless memory": ("fit", ["--model.memory_limit=1e400"], "memory_limit must be positive and finite"),
    "negative similarity weight": ("fit", ["--model.similarity_weight=-1"], "similarity_weight must be 0"),
    "similarity weight that is no number": ("fit", ["--model.similarity_weight=.nan"], "similarity_weight must be 0"),
    "no hidden layers": ("fit", ["--model.hidden_dims=[]"], "two hidden widths"),
    "seed beyond 32 bits": (
        "evaluate",
        [f"--model.methods.x={{class_path: RandomMapRegions, init_args: {{seed: {10**20}}}}}"],
        "The seed must fit into 32 bits",
    ),
    "nothing to measure": ("evaluate", ["--trainer.limit_test_batches=0"], "Nothing would be measured"),
    "nothing to validate": ("fit", ["--trainer.limit_val_batches=0"], "Without training or validation batches"),
    "nothing to train": ("fit", ["--trainer.limit_train_batches=0"], "Without training or validation batches"),
    "no validation at all": ("validate", ["--trainer.limit_val_batches=0"], "Without validation batches"),
    "no epochs": ("fit", ["--trainer.max_epochs=0"], "`trainer.max_epochs` and"),
    "no steps": ("fit", ["--trainer.max_steps=0"], "`trainer.max_steps` above 0"),
    "validation now and then": ("fit", ["--trainer.check_val_every_n_epoch=2"], "count epochs by their validations"),
    "validation in between": ("fit", ["--trainer.val_check_interval=0.5"], "count epochs by their validations"),
    "validation of the last of nothing": ("validate", ["--ckpt_path=last"], "There is no artefact last"),
    "an export to resume": ("fit", ["--ckpt_path={trained}/artefact"], "is a folder: name a .ckpt"),
    "a crop of photographs without their masks": (
        "evaluate",
        ["--data.crop=32"],
        "The view cuts the photograph src/000",
    ),
    "masks of another size than the photographs": (
        "evaluate",
        ["--data.crop=32", "--data.view_masks=true"],
        "is (32, 32), its photograph (64, 64): one crop does not fit both",
    ),
    "no data": ("fit", ["--data=null"], "No data is named"),
    "no data to validate": ("validate", ["--data=null"], "No data is named"),
    "image that is not square": (
        "features",
        ["--classifier.init_args.input_size=[8,64]"],
        "give a square `input_size`",
    ),
    "some of the photographs": ("prepare", ["--count=5"], "'images' is taken whole"),
    "negative classes": ("features", ["--classifier.init_args.num_classes=-1"], "num_classes must be at least 1"),
    "negative image": ("features", ["--classifier.init_args.input_size=[-1, 5]"], "input_size must be (height, width)"),
    "colors beyond three": ("features", ["--vlm.init_args={mean: [0, 0, 0, 0], std: [1, 1, 1, 1]}"], "of 3, got"),
    "channel share above 1": ("evaluate", ["--model.channel_share=2"], "channel_share"),
    "crop larger than the picture": ("evaluate", ["--data.crop=500"], "smaller than the crop of 500"),
    "regions in half precision": ("evaluate", ["--trainer.precision=bf16-true"], "set `trainer.precision` to 32-true"),
    "training in double precision": ("fit", ["--trainer.precision=64-true"], "The precision '64-true'"),
    # Weights
    "weights missing offline": (
        "fit",
        [TOWER + "weights=DEFAULT", TOWER + "num_classes=null"],
        "Put the file resnet18",
    ),
    "weights of no such entry": ("fit", [TOWER + "weights=IMAGENET"], "resnet18 has no weights 'IMAGENET'"),
    "weights not there": ("fit", [TOWER + "weights=gone.pth"], "There is no weights file gone.pth"),
    "pickled weights": ("fit", [TOWER + "weights={broken}/pickled.pth"], "holds a pickled object"),
    "other number of classes": ("fit", [TOWER + "num_classes=7"], "do not fit the architecture"),
    "VLM weights missing offline": (
        "fit",
        [
            "--model.vlm={class_path: cefam.load_vlm, init_args: {name: ViT-B-32-quickgelu, pretrained: openai, config: null}}"
        ],
        "could not be loaded",
    ),
    "VLM without weights": (
        "fit",
        ["--model.vlm={class_path: cefam.load_vlm, init_args: {name: RN50, pretrained: null, config: null}}"],
        "its embeddings are random",
    ),
    "VLM weights broken": ("fit", [VLM + "pretrained={broken}/truncated.pth"], "could not be loaded"),
    "VLM of NaN": ("features", ["--vlm.init_args.pretrained={broken}/nan_vlm.pt"], "(embedding) is not finite"),
    "VLM with a scale of NaN": ("fit", [VLM + "pretrained={broken}/nan_scale.pt"], "logit_scale is nan"),
    "VLM with texts of NaN": ("fit", [VLM + "pretrained={broken}/nan_text.pt"], "text embeddings are not finite"),
    "VLM config that is none": ("fit", [VLM + "config={broken}/no_clip.json"], "it needs embed_dim"),
    "VLM config that is no JSON": ("fit", [VLM + "config={broken}/no_json.json"], "is not JSON"),
    # Concepts
    "no concept": ("fit", ["--model.concepts=[]"], "needs at least one concept"),
    "concept without a name": ("fit", ["--model.concepts={broken}/no_name.csv"], "line 3: the word is empty"),
    "prompt too long": ("fit", ["--model.concepts={broken}/long.txt"], "shorten the concept"),
    "concepts with other numbers than the masks": (
        "evaluate",
        ["--model.concepts=awa2", "--model.vlm={vlm}"],
        "The masks and the concepts number their labels differently",
    ),
    "concepts with other numbers, in validation": (
        "fit",
        ["--model.concepts=awa2", DATA + "regions={made}/broden"],
        "The masks and the concepts number their labels differently",
    ),
    # Images
    "no folder of images": ("features", ["--images=gone"], "There is no folder gone"),
    "folder without images": ("features", ["--images={broken}/empty"], "No image"),
    "images in a file": ("features", ["--images={broken}/file"], "There is no folder"),
    "image that is a pipe": ("features", ["--images={broken}/pipe"], "a.jpg is a broken link, or not a file"),
    "image that is a link to nothing": ("features", ["--images={broken}/link"], "a.jpg is a broken link"),
    "corrupt image": ("features", ["--images={broken}/corrupt"], "a.jpg cannot be read"),
    "empty image": ("features", ["--images={broken}/nothing"], "a.jpg cannot be read"),
    "truncated image": ("features", ["--images={broken}/half"], "a.png cannot be read"),
    "400-megapixel image": ("features", ["--images={broken}/bomb"], "a.png cannot be read"),
    "corrupt image, into shards": ("prepare", ["--source={broken}/corrupt"], "a.jpg cannot be read"),
    "corrupt image, in training": ("fit", ["--data={corrupt_images}"], "a.jpg cannot be read"),
    # Broden
    "no label.csv": ("prepare", ["--kind=broden", "--source={broken}/broden_labels"], "it has no label.csv"),
    "no index.csv": ("prepare", ["--kind=broden", "--source={broken}/broden_index"], "it has no index.csv"),
    "index without a column": ("prepare", ["--kind=broden", "--source={broken}/broden_column"], "no column 'color'"),
    "index without rows": ("prepare", ["--kind=broden", "--source={broken}/broden_rows"], "No sample was found"),
    "photograph missing": ("prepare", ["--kind=broden", "--source={broken}/broden_photo"], "src/003.jpg"),
    "mask missing": ("prepare", ["--kind=broden", "--source={broken}/broden_mask"], "003_color.png"),
    "mask that is no image": ("prepare", ["--kind=broden", "--source={broken}/broden_broken_mask"], "003_color.png"),
    "mask with an unknown label": ("prepare", ["--kind=broden", "--source={broken}/broden_unknown"], "has labels [38]"),
    "label of a strange number": ("prepare", ["--kind=broden", "--source={broken}/broden_number"], "'thirty-eight'"),
    "label number 0": (
        "prepare",
        ["--kind=broden", "--source={broken}/broden_zero"],
        "line 5: the number of 'car' is 0",
    ),
    "label number twice": ("prepare", ["--kind=broden", "--source={broken}/broden_twice"], "already has a row"),
    "photograph twice": ("prepare", ["--kind=broden", "--source={broken}/broden_again"], "already has a row"),
    "row cut short": ("prepare", ["--kind=broden", "--source={broken}/broden_short"], "the row is cut short"),
    "photograph without a suffix": (
        "prepare",
        ["--kind=broden", "--source={broken}/broden_suffix"],
        "does not have the suffix of",
    ),
    "masks that Broden has not": (
        "prepare",
        ["--kind=broden", "--source={world}/broden", "--masks=[scene]"],
        "Broden has no masks of scene",
    ),
    "masks twice": ("prepare", ["--masks=[color, color]"], "A category is in masks twice"),
    "masks of photographs": ("prepare", ["--masks=[object]"], "A folder of images holds no masks"),
    # Shards, caches
    "no shards": ("evaluate", ["--data.shards={broken}/empty"], "holds no shards"),
    "broken manifest": ("evaluate", ["--data.shards={broken}/shards_json"], "is not a file of cefam-shards"),
    "manifest of another version": ("evaluate", ["--data.shards={broken}/shards_version"], "version 1"),
    "shard missing": ("evaluate", ["--data.shards={broken}/shards_gone"], "lists shard-000001.tar"),
    "shard truncated": ("evaluate", ["--data.shards={broken}/shards_cut"], "shard-000000.tar"),
    "shard that is no tar": ("evaluate", ["--data.shards={broken}/shards_strange"], "shard-00000"),
    "unfinished cache": ("fit", [DATA + "train={broken}/cache_unfinished"], "is not a finished feature cache"),
    "cache with a strange manifest": (
        "fit",
        [DATA + "train={broken}/cache_json"],
        "is not a file of cefam-features",
    ),
    "file of a cache missing": ("fit", [DATA + "train={broken}/cache_gone"], "has no features.npy"),
    "file of a cache truncated": ("fit", [DATA + "train={broken}/cache_cut"], "cannot be read"),
    "cache of other tensors": ("fit", [DATA + "train={broken}/cache_shapes"], "instead of (48, 992) float32"),
    "cache of NaN": ("fit", [DATA + "train={broken}/cache_nan"], "loss became nan"),
    # Artefacts
    "no artefact": ("evaluate", ["--model.artefact=gone"], "There is no artefact gone"),
    "truncated artefact": ("evaluate", ["--model.artefact={broken}/artefact_cut"], "truncated, empty"),
    "pickled checkpoint": ("export", ["--checkpoint={broken}/pickled.ckpt"], "holds pickled"),
    "no checkpoint to resume": ("fit", ["--ckpt_path=gone.ckpt"], "gone.ckpt"),
    "truncated checkpoint to resume": ("fit", ["--ckpt_path={broken}/cut.ckpt"], "cut.ckpt"),
    "weights alone to resume": ("fit", ["--ckpt_path={broken}/weights.ckpt"], "holds weights alone"),
    "another optimizer to resume with": (
        "fit",
        [RESUMED, "--model.optimizer=torch.optim.Adam"],
        "optimizer = SGD, and this run asks for Adam",
    ),
    "another loss to resume with": (
        "fit",
        [RESUMED, "--model.similarity_weight=2"],
        "similarity_weight = 0.001, and this run asks for 2",
    ),
    "another preset to resume with": (
        "fit",
        [RESUMED, "--model.preset=paper", "--model.plateau_patience=6"],
        "preset = published, and this run asks for paper",
    ),
    # Methods, probes, other programs' artefacts
    "probe set smaller than K": ("probe", ["--top=1000"], "fewer than the 1000 per neuron: set `--top`"),
    "probe of no photographs": ("probe", ["--images={broken}/empty"], "empty"),
    "probe into a file": ("probe", ["--folder={broken}/file"], "file"),
    "associations of no probe": ("associate", ["--probe={broken}/empty"], "is not a finished probe"),
    "method of an unknown stage": (
        "evaluate",
        ["--model.methods={a: {class_path: CEFAMRegions, init_args: {stages: [layer9]}}}"],
        "no stage 'layer9'. Did you mean",
    ),
    "method without its probe": ("evaluate", ["--model.methods={a: WWWRegions}"], "WWW needs a probe"),
    "evaluation with no probe there": ("evaluate", ["--model.probe={broken}/empty"], "is not a finished probe"),
    "reference without masks": ("evaluate", ["--model.methods={a: NetworkDissectionRegions}"], "is fitted to masks"),
    "associations that are none": (
        "evaluate",
        ["--model.methods={a: {class_path: WWWRegions, init_args: {associations: {broken}/empty}}}"],
        "holds no associations",
    ),
    "pickle with code": ("import", ["--files={layer4: {broken}/code.pkl}"], "nothing in it is run"),
    "pickle of an unknown stage": ("import", ["--files={layer9: {broken}/code.pkl}"], "no stage 'layer9'"),
    "pickle that is none": ("import", ["--files={layer4: {broken}/words.csv}"], "cannot be read"),
    "no pickle": ("import", ["--files={layer4: gone.pkl}"], "There is no file gone.pkl"),
    "descriptions in other words": (
        "import",
        ["--kind=clip_dissect", "--files={all: {broken}/words.csv}"],
        "words.csv, line 2: 'zebra' is not in the concept set",
    ),
    "figure of no results": ("figure", ["--run={broken}/empty"], "holds no results"),
    # Output
    "checkpoints beside others": ("fit", ["--checkpoint.dirpath={trained}/log/checkpoints"], "holds checkpoints"),
    "shards into a file": ("prepare", ["--folder={broken}/file"], "file"),
    "shards below a file": ("prepare", ["--folder={broken}/file/below"], "file"),
    "features into a file": ("features", ["--folder={broken}/file"], "file"),
    "results into a file": ("evaluate", ["--model.output={broken}/file"], "file"),
    "artefact into a file": ("export", ["--folder={broken}/file"], "file"),
    "run into a file": ("fit", ["--trainer.logger.init_args.save_dir={broken}/file"], "file"),
    "demo into a file": ("demo", ["--folder={broken}/file"], "file"),
    "shards over shards": ("prepare", ["--folder={made}/train"], "already holds a finished set"),
    "artefact over an artefact": ("export", ["--folder={trained}/artefact"], "already holds an artefact"),
}


def resnet18(weights):
    return load_classifier("resnet18", str(weights), num_classes=10, input_size=[64, 64])


# What reads a file, the file, and what the sentence must say.
FILES = {
    "empty file of concepts": (ConceptSet.load, "empty.txt", "needs at least one concept"),
    "concepts without words": (ConceptSet.load, "no_word.csv", "needs one called 'word' or 'name'"),
    "concept of a strange number": (ConceptSet.load, "bad_number.csv", "line 3: the number 'two'"),
    "one number twice": (ConceptSet.load, "twice.csv", "Two concepts have number 1"),
    "number 0": (ConceptSet.load, "zero.csv", "line 2: the number of 'wing' is 0"),
    "open quote": (ConceptSet.load, "quote.csv", "a quote is opened here and never closed"),
    "column twice": (ConceptSet.load, "columns.csv", "line 1: two columns have the same name"),
    "number that no mask can hold": (ConceptSet.load, "large.csv", "masks hold numbers from 1 to 65534"),
    "concepts in another kind of file": (ConceptSet.load, "unknown_key.yaml", "must be .txt"),
    "value too many": (ConceptSet.load, "many.csv", "line 2: more values than columns"),
    "concepts in Latin-1": (ConceptSet.load, "latin.txt", "latin.txt is not UTF-8 text"),
    "empty weights": (resnet18, "empty.pth", "truncated, empty"),
    "truncated weights": (resnet18, "truncated.pth", "truncated, empty"),
    "weights that are a list": (resnet18, "list.pth", "does not hold a state dict"),
    "weights of another model": (resnet18, "other.safetensors", "do not fit the architecture"),
    "empty safetensors": (resnet18, "empty.safetensors", "truncated, empty"),
    "artefact without config": (Trained.read, "artefact_config", "it has no config.json"),
    "artefact with a broken config": (Trained.read, "artefact_json", "is not JSON"),
    "artefact of something else": (Trained.read, "artefact_format", "not describe an artefact"),
    "artefact without texts": (Trained.read, "artefact_texts", "holds no text embeddings"),
    "artefact without weights": (Trained.read, "artefact_weights", "export it again"),
    "empty checkpoint": (Trained.read, "empty.ckpt", "truncated, empty"),
    "truncated checkpoint": (Trained.read, "cut.ckpt", "truncated, empty"),
    "checkpoint of something else": (Trained.read, "foreign.ckpt", "is not a checkpoint of cefam"),
}


@pytest.fixture(scope="session")
def broken(world, prepared, trained, tmp_path_factory):
    return broken_things.make_all(tmp_path_factory.mktemp("broken") / "things", world, prepared, trained)


def filled(changes, broken, world, made, trained):
    """Changes with the places of this run."""
    towers = yaml.safe_load((world / "towers.yaml").read_text())
    images = images_data(broken / "corrupt", broken / "corrupt")
    places = {
        "broken": broken,
        "world": world,
        "made": made,
        "trained": trained,
        "vlm": towers["vlm"],
        "corrupt_images": images,
    }
    for place, value in places.items():
        changes = [change.replace("{" + place + "}", str(value)) for change in changes]
    return changes


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_a_sentence(name, broken):
    read, file, advice = FILES[name]
    with pytest.raises(CefamError, match=re.escape(advice)):
        read(broken / file)


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_a_sentence(name, broken, world, prepared, trained, tmp_path, capsys):
    verb, changes, advice, *status = CASES[name]
    options = [*good_call(verb, world, prepared, trained), *filled(changes, broken, world, prepared, trained)]
    assert run(verb, *options) == (status[0] if status else 1)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"cefam {verb}: ")
    assert advice in said
    assert "Traceback" not in said
    assert not [path for pattern in RESULTS for path in tmp_path.rglob(pattern)], "half-written"


def save_odd_images(folder):
    """Images of unusual kinds, all good."""
    folder.mkdir()
    noise = Image.effect_noise((80, 70), 60)
    color = Image.merge("RGB", [noise, noise.rotate(90, expand=False), noise.rotate(180)])
    for mode, name in (("L", "grey.png"), ("LA", "grey_alpha.png"), ("RGBA", "alpha.png"), ("P", "palette.png")):
        color.convert(mode).save(folder / name)
    color.convert("CMYK").save(folder / "cmyk.jpg")
    color.save(folder / "color.webp")
    Image.fromarray(np.asarray(noise).astype(np.uint16) * 256).save(folder / "sixteen_bits.png")
    noise.save(folder / "animated.gif", save_all=True, append_images=[noise.rotate(90)])
    color.resize((1, 1)).save(folder / "one_pixel.png")
    color.resize((300, 3)).save(folder / "thin.png")
    Image.new("1", (10_000, 10_000), 1).save(folder / "hundred_megapixels.png")
    return len(list(folder.iterdir()))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unusual_images_are_images(world, prepared, trained, tmp_path):
    count = save_odd_images(tmp_path / "odd")
    source = f"--images={tmp_path}/odd"
    assert run("features", *good_call("features", world, prepared, trained), source) == 0
    features = load_features("out")
    assert len(features) == count
    assert features.matrix.isfinite().all()
    assert run("prepare", "--kind=images", f"--source={tmp_path}/odd", "--folder=shards") == 0
    assert len(list(read_shard(tmp_path / "shards" / "shard-000000.tar"))) == count


@pytest.mark.parametrize(
    "words",
    [["wing"], ["orange", "orange"], [f"word {number}" for number in range(5_000)]],
    ids=["one concept", "equal words", "5,000 concepts"],
)
def test_unusual_concept_sets_train(words, world, prepared, trained, tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(words))
    options = ["--model.concepts=words.txt", csv_logger(tmp_path)]
    assert run("fit", *good_call("fit", world, prepared, trained), *options) == 0
    loaded = Trained.read(tmp_path / "log" / "checkpoints" / "best.ckpt")
    assert loaded.concepts.words == words


def test_a_loss_that_becomes_nan_keeps_the_good_checkpoint(broken, world, prepared, trained, tmp_path, capsys):
    options = [*good_call("fit", world, prepared, trained), csv_logger(tmp_path)]
    assert run("fit", *options) == 0
    good = (tmp_path / "log" / "checkpoints" / "last.ckpt").read_bytes()
    more = [f"--ckpt_path={tmp_path}/log/checkpoints/last.ckpt", "--trainer.max_epochs=5"]
    assert run("fit", *options, *more, f"{DATA}train={broken}/cache_nan") == 1
    assert "loss became nan in epoch 1" in capsys.readouterr().err
    assert (tmp_path / "log" / "checkpoints" / "last.ckpt").read_bytes() == good
    for value in Trained.read(tmp_path / "log" / "checkpoints" / "last.ckpt").translator.state_dict().values():
        assert value.isfinite().all()


@pytest.mark.parametrize("verb", ["prepare", "features", "fit", "evaluate", "export"])
def test_a_full_disk_is_said(verb, world, prepared, trained, tmp_path, capsys):
    """No file may grow beyond 4 kB: what a full disk does, as far as a program can tell."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    options = good_call(verb, world, prepared, trained)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        status = run(verb, *options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"cefam {verb}: ")
    assert "too large" in said
    assert not [path for pattern in RESULTS for path in tmp_path.rglob(pattern)], "half-written"
