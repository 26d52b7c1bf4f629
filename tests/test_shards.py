"""The sample contract: what goes in comes out, counted; unfinished and broken sets are told apart from whole ones."""

import io
import json
import shutil
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from cefam.commands import main
from cefam.datamodules import RegionsData
from cefam.datasets import Manifest, Mask, Sample, ShardWriter, read_shard
from cefam.datasets.batches import region_batch
from cefam.datasets.sources.broden import Broden
from cefam.datasets.sources.images import list_images
from cefam.images.pictures import read_pixels
from cefam.images.views import EvaluationView
from tests.commands import ROOT


def samples_of(root):
    source = Broden(str(root))
    return source.samples(0, len(source))


def prepared(world, tmp_path, per_shard=4):
    folder = tmp_path / "shards"
    arguments = ["--kind", "broden", "--source", f"{world}/broden", "--folder", str(folder)]
    assert main(["prepare", *arguments, "--samples_per_shard", str(per_shard)]) == 0
    return folder


def test_broden_goes_into_shards_and_comes_out_pixel_by_pixel(world, tmp_path):
    folder = prepared(world, tmp_path)
    manifest = Manifest.read(folder)
    originals = list(samples_of(world / "broden"))
    assert manifest.num_samples == len(originals) == 14
    assert [shard["samples"] for shard in manifest.shards] == [4, 4, 4, 2]
    assert manifest.mask_size == [32, 32]
    assert {label["number"] for label in manifest.labels} == {1, 10, 30, 38, 19, 73}
    found = [sample for shard in manifest.placed(folder) for sample in read_shard(shard)]
    pairs = 0
    for one, other in zip(found, originals, strict=True):
        assert (one.id, one.image) == (other.id, other.image)
        assert [m.category for m in one.masks] == [m.category for m in other.masks]
        for a, b in zip(one.masks, other.masks, strict=True):
            assert np.array_equal(a.index_map, b.index_map)
            pairs += len(set(np.unique(a.index_map)) - {0})
    assert manifest.num_pairs == pairs > 50
    assert [len(sample.masks) for sample in found][3:6] == [5, 4, 0]


def test_the_data_set_of_the_contributor_page_is_read(world, tmp_path):
    page = (ROOT / "docs/reference/extending.md").read_text()
    code = next(block.split("```")[0] for block in page.split("```python\n") if "my_birds()" in block)
    birds = [(path.name, path.read_bytes()) for path in sorted((world / "broden" / "images" / "src").glob("*.jpg"))]
    mask = np.tri(64, dtype=np.uint8)
    exec(code, {"my_birds": lambda: [(name, jpeg, mask) for name, jpeg in birds]})
    (batch,) = RegionsData("shards").test_dataloader()
    assert batch.ids == [name for name, _ in birds]
    assert np.array_equal(batch.masks[0].numpy(), mask)
    assert batch.mask_category == ["part"] * len(birds)
    assert Manifest.read("shards").labels == [{"number": 1, "name": "wing", "category": "part"}]


def test_masks_of_chosen_categories_alone(world, tmp_path):
    options = ["--kind=broden", f"--source={world}/broden", f"--folder={tmp_path}/shards", "--masks=[part, object]"]
    assert main(["prepare", *options]) == 0
    (path,) = (tmp_path / "shards").glob("*.tar")
    originals = samples_of(world / "broden")
    for sample, whole in zip(read_shard(path), originals, strict=True):
        wanted = [mask for category in ("part", "object") for mask in whole.masks if mask.category == category]
        assert [mask.category for mask in sample.masks] == [mask.category for mask in wanted]
        for a, b in zip(sample.masks, wanted, strict=True):
            assert np.array_equal(a.index_map, b.index_map)


@pytest.mark.parametrize(
    ("masks", "advice"),
    [
        ([np.full((4, 4), 1.7)], r"A part mask of b must be \(H, W\) whole numbers, got \(4, 4\) float64"),
        ([np.ones((4, 4, 3), dtype=int)], r"whole numbers, got \(4, 4, 3\)"),
        ([np.ones((4, 4), dtype=int), np.ones((5, 4), dtype=int)], r"The masks of b have several sizes"),
        ([np.full((4, 4), 70_000)], r"A part mask of b has labels outside 0 .. 65535"),
    ],
)
def test_masks_that_would_be_stored_otherwise_are_refused(tmp_path, masks, advice):
    with pytest.raises(ValueError, match=advice), ShardWriter(tmp_path / "s", "test") as writer:
        writer.write(Sample("b", b"x", ".jpg", None, tuple(Mask("part", mask) for mask in masks)))
    assert not list((tmp_path / "s").iterdir())


def test_two_samples_of_one_name_are_refused(tmp_path):
    def write():
        with ShardWriter(tmp_path / "s", "test") as writer:
            for _ in range(2):
                writer.write(Sample("a", b"x", ".jpg"))

    with pytest.raises(ValueError, match="two samples 'a'"):
        write()
    assert not list((tmp_path / "s").iterdir())


def test_hidden_files_and_folders_are_no_photographs(world, tmp_path):
    shutil.copytree(world / "images" / "val", tmp_path / "images")
    wanted = [label for _, label in list_images(tmp_path / "images")]
    for folder in ("", "class1"):
        hidden = tmp_path / "images" / folder / ".ipynb_checkpoints"
        shutil.copytree(world / "images" / "val" / "class1", hidden)
    assert [label for _, label in list_images(tmp_path / "images")] == wanted


def test_files_that_are_left_out_are_counted(world, tmp_path):
    shutil.copytree(world / "images" / "val", tmp_path / "images")
    for name in ("a.heic", "b.HEIC", "notes.txt", ".DS_Store"):
        (tmp_path / "images" / name).touch()
    with pytest.warns(UserWarning, match=r"3 file\(s\) below .* are skipped.*: 2 x .heic, 1 x .txt."):
        assert len(list_images(tmp_path / "images")) == 11


def test_a_label_number_beyond_255_survives(tmp_path):
    index_map = np.full((4, 4), 1196)
    with ShardWriter(tmp_path / "s", "test") as writer:
        writer.write(Sample("a", b"x", ".jpg", None, (Mask("object", index_map),)))
    (sample,) = read_shard(tmp_path / "s" / "shard-000000.tar")
    assert np.array_equal(sample.masks[0].index_map, index_map)


def test_a_folder_of_images_keeps_bytes_and_classes(world, tmp_path, capsys):
    folder, options = tmp_path / "shards", ["--kind=images", f"--source={world}/images/val"]
    assert main(["prepare", *options, f"--folder={folder}"]) == 0
    assert (
        "lie class by class: to train from these shards, prepare them with `--shuffle true`" in capsys.readouterr().out
    )
    samples = list(read_shard(folder / "shard-000000.tar"))
    paths = list_images(world / "images" / "val")
    assert [s.image for s in samples] == [path.read_bytes() for path, _ in paths]
    assert [s.label for s in samples] == [label for _, label in paths] == sorted(label for _, label in paths)


def test_photographs_are_shuffled_into_shards(world, tmp_path):
    """Else a training batch from shards of ImageNet would be of one class or two. The order is always the same."""
    found = {}
    for name, options in {"a": ["--shuffle=true"], "b": ["--shuffle=true", "--num_workers=2"], "sorted": []}.items():
        source = ["--kind=images", f"--source={world}/images/train", f"--folder={tmp_path / name}", *options]
        assert main(["prepare", *source, "--samples_per_shard=8"]) == 0
        shards = [list(read_shard(path)) for path in sorted((tmp_path / name).glob("*.tar"))]
        found[name] = [[(s.id, s.label, s.image) for s in shard] for shard in shards]
    assert found["a"] == found["b"]
    assert found["a"] != found["sorted"]
    assert sorted(chain(*found["a"])) == list(chain(*found["sorted"]))
    classes = {name: [len({label for _, label, _ in shard}) for shard in shards] for name, shards in found.items()}
    assert min(classes["a"]) > max(classes["sorted"])


def test_a_stopped_writer_leaves_nothing_that_looks_finished(tmp_path):
    def stopped():
        with ShardWriter(tmp_path / "s", "test", samples_per_shard=2) as writer:
            for index in range(3):
                writer.write(Sample(str(index), b"x", ".jpg"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["shard-000000.tar"]
    with pytest.raises(FileNotFoundError, match="make them with `cefam prepare`"):
        Manifest.read(tmp_path / "s")


def test_a_writer_that_is_stopped_while_it_opens_a_shard_leaves_none(tmp_path, monkeypatch):
    def stopped(**_):
        raise KeyboardInterrupt  # the file is there by then

    monkeypatch.setattr("tarfile.open", stopped)
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "s", "test") as writer:
        writer.write(Sample("one", b"x", ".jpg"))
    assert not list((tmp_path / "s").iterdir())


def test_a_finished_set_is_never_overwritten(world, tmp_path, capsys):
    folder = prepared(world, tmp_path)
    before = (folder / "manifest.json").read_bytes()
    assert main(["prepare", "--kind", "broden", "--source", f"{world}/broden", "--folder", str(folder)]) == 1
    assert "already holds a finished set" in capsys.readouterr().err
    assert (folder / "manifest.json").read_bytes() == before


def truncate(path):
    path.write_bytes(path.read_bytes()[:60])


def broken_broden(world, tmp_path, how):
    root = tmp_path / "broken"
    shutil.copytree(world / "broden", root)
    how(root)
    return root


@pytest.mark.parametrize(
    ("how", "advice"),
    [
        (lambda root: (root / "index.csv").unlink(), "no index.csv"),
        (lambda root: (root / "index.csv").write_text("picture\nx\n"), "has no column 'color', 'image'"),
        (lambda root: (root / "label.csv").write_text("name\nx\n"), "has no column 'category', 'number'"),
        (lambda root: (root / "label.csv").write_text("number,name,category\nx,a,b\n"), "line 2: the number 'x'"),
        (lambda root: truncate(root / "images/src/002_part.png"), "002_part.png cannot be read"),
        (lambda root: (root / "label.csv").unlink(), "no label.csv"),
        (lambda root: (root / "images/src/002.jpg").unlink(), "lists src/002.jpg, which is not in"),
        (lambda root: (root / "images/src/002_part.png").unlink(), "The mask 002_part.png is not in"),
        (lambda root: (root / "images/src/002.jpg").write_bytes(b""), "src/002.jpg cannot be read"),
        (lambda root: (root / "images/src/002.jpg").write_bytes(b"\xff\xd8\xff broken"), "src/002.jpg cannot be read"),
        (
            lambda root: (root / "label.csv").write_text("number,name,category\n1,a,color\n"),
            "which label.csv does not list",
        ),
    ],
)
def test_a_broken_broden_is_said_and_leaves_no_set(world, tmp_path, how, advice, capsys):
    root, folder = broken_broden(world, tmp_path, how), tmp_path / "out"
    assert main(["prepare", "--kind", "broden", "--source", str(root), "--folder", str(folder)]) == 1
    assert advice in capsys.readouterr().err
    assert not (folder / "manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--kind", "coco", "--source", "."], "kind must be"),
        (["--kind", "images", "--source", "nowhere"], "There is no folder nowhere"),
        (["--kind", "images", "--source", "."], "No image"),
    ],
)
def test_bad_sources_are_refused(arguments, advice, capsys):
    assert main(["prepare", *arguments, "--folder", "out"]) == 1
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize("view", [True, False])
def test_masks_as_large_as_their_photographs_are_cut_with_them(tmp_path, view):
    """ImageNet-S: photographs and masks of all sizes; Resize and CenterCrop on both."""
    with ShardWriter(tmp_path / "s", "test") as writer:
        for name, (height, width) in (("a", (40, 60)), ("b", (64, 48))):
            buffer, index_map = io.BytesIO(), np.zeros((height, width), dtype=int)
            index_map[:, width // 2 :] = 3
            Image.new("RGB", (width, height)).save(buffer, format="PNG")
            writer.write(Sample(name, buffer.getvalue(), ".png", None, (Mask("object", index_map),)))
    assert Manifest.read(tmp_path / "s").mask_size is None
    data = RegionsData(str(tmp_path / "s"), resize=36, crop=32, view_masks=view)
    if view:
        (batch,) = data.test_dataloader()
        assert batch.masks.shape == (2, 32, 32)
        assert (batch.masks == 3).double().mean().item() == pytest.approx(0.5, abs=0.02)
    else:
        with pytest.raises(
            ValueError, match=r"view cuts the photograph a \(40, 60\), and not its masks: set `view_masks`"
        ):
            list(data.test_dataloader())


def test_photographs_of_different_sizes_need_a_view(tmp_path):
    with ShardWriter(tmp_path / "s", "test") as writer:
        for side in (8, 9):
            buffer = io.BytesIO()
            Image.new("RGB", (side, side)).save(buffer, format="PNG")
            writer.write(
                Sample(str(side), buffer.getvalue(), ".png", None, (Mask("object", np.ones((4, 4), dtype=int)),))
            )
    with pytest.raises(ValueError, match="photographs of 8 and 9 differ in size"):
        list(RegionsData(str(tmp_path / "s")).test_dataloader())


def test_a_missing_shard_is_said(world, tmp_path):
    folder = prepared(world, tmp_path)
    (folder / "shard-000002.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"lists shard-000002.tar, which does not exist"):
        RegionsData(str(folder)).test_dataloader()


def test_another_format_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "cefam-shards", "version": 99}))
    with pytest.raises(ValueError, match="run `cefam prepare` again"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_every_sample_comes_once_whatever_the_workers(world, tmp_path, workers):
    loader = RegionsData(str(prepared(world, tmp_path)), batch_size=3, num_workers=workers).test_dataloader()
    seen = {}
    for batch in loader:
        for pair in range(len(batch.pair_label)):
            mask = batch.pair_mask[pair]
            label = int(batch.pair_label[pair])
            name = batch.ids[batch.mask_image[mask]]
            area = int((batch.masks[mask] == label).sum())
            seen.setdefault(name, []).append((batch.mask_category[mask], label, area))
    expected = {
        s.id: [
            (m.category, int(v), int((m.index_map == v).sum())) for m in s.masks for v in np.unique(m.index_map) if v
        ]
        for s in samples_of(world / "broden")
    }
    assert seen == {name: pairs for name, pairs in expected.items() if pairs}


def test_a_picture_of_one_pixel_and_an_animation_are_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_pixels(tmp_path / "a.gif", "a")[:, 0, 0].tolist() == [255, 0, 0]
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    assert EvaluationView(8, 8)(read_pixels(tmp_path / "one.png", "one")).float().mean(dim=(1, 2)).tolist() == [
        255,
        0,
        0,
    ]


@pytest.mark.realset
def test_the_real_broden_format_is_read(realset, tmp_path):
    samples = list(samples_of(realset / "broden_sample"))
    assert len(samples) == 251
    assert {mask.index_map.shape for sample in samples for mask in sample.masks} == {(112, 112)}
    labels = {int(v) for s in samples for m in s.masks for v in np.unique(m.index_map) if v}
    assert {1, 19, 48} <= labels
    assert max(labels) > 255


def test_a_batch_without_masks_is_a_batch():
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, format="PNG")
    batch = region_batch(EvaluationView(None, None), False, "nearest", [Sample("a", stream.getvalue(), ".png")], 0)
    assert len(batch.masks) == len(batch.pair_label) == 0
