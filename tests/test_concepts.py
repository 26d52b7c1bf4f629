"""Concept sets: the vocabularies, their prompts, files, and identity by number."""

from collections import Counter

import pytest
import torch

from cefam import ConceptSet
from cefam.concepts.sets import Concept


def test_files_of_spreadsheets_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.csv").write_text("number,word\n38,car\n10,red\n", encoding="utf-8-sig")
    assert ConceptSet.from_file(tmp_path / "a.csv").numbers == [38, 10]
    (tmp_path / "a.txt").write_text("striped fur\n", encoding="utf-8-sig")
    assert ConceptSet.from_file(tmp_path / "a.txt").words == ["striped fur"]


def test_broden_has_the_counts_of_the_published_program_and_of_table_a1():
    concepts = ConceptSet.broden()
    assert len(concepts) == 1197
    assert concepts.numbers == list(range(1, 1198))
    assert Counter(c.category for c in concepts.concepts) == {
        "object": 523,
        "part": 123,
        "color": 11,
        "material": 25,
        "scene": 468,
        "texture": 47,
    }
    listed = Counter(category for c in concepts.concepts for category in c.categories)
    assert [listed[name] for name in ("object", "part", "color", "material")] == [584, 234, 11, 32]
    assert len({word.lower() for word in concepts.words}) == 1153
    assert len(concepts.find("mountain")) == 2  # an object and a scene: equal words are different concepts


@pytest.mark.parametrize(
    ("number", "word", "prompt"),
    [
        (1, "black", "a photo of a black object"),
        (19, "person", "a photo of a person"),
        (30, "glass", "a photo of an object made of glass"),
    ],
)
def test_broden_prompts_are_table_a1s(number, word, prompt):
    concept = ConceptSet.broden().concepts[number - 1]
    assert (concept.word, concept.prompt) == (word, prompt)


def test_scenes_and_textures_have_the_programs_prompts_and_no_suffix():
    concepts = ConceptSet.broden().concepts
    scene = next(c for c in concepts if c.category == "scene")
    texture = next(c for c in concepts if c.category == "texture")
    assert scene.prompt == f"a photo of an object on {scene.word}"
    assert not scene.word.endswith("-s")
    assert texture.prompt == f"a photo of a {texture.word} object"


def test_imagenet_and_awa2():
    imagenet = ConceptSet.load("imagenet")
    assert (len(imagenet), imagenet.words[0], imagenet.prompts[1]) == (1000, "tench", "a photo of a goldfish")
    assert imagenet.find("Tench") == [0]
    awa2 = ConceptSet.load("awa2")
    assert (len(awa2), awa2.words[0]) == (85, "black")


def test_unknown_words_and_sets_name_near_ones():
    with pytest.raises(ValueError, match=r"Unknown concept 'strped'. Did you mean 'striped'.* \(1197 known"):
        ConceptSet.broden().find("strped")
    with pytest.raises(ValueError, match="Did you mean 'broden'"):
        ConceptSet.load("brodn")


def test_text_and_csv_files(tmp_path):
    (tmp_path / "words.txt").write_text("striped fur\n\n  wing \n", encoding="utf-8")
    assert ConceptSet.load(tmp_path / "words.txt").words == ["striped fur", "wing"]
    (tmp_path / "set.csv").write_text("word,number,category,prompt\nwing,7,part,\nsky,3,object,the blue sky\n")
    concepts = ConceptSet.load(str(tmp_path / "set.csv"))
    assert concepts.numbers == [7, 3]
    assert concepts.prompts == ["a photo of a wing", "the blue sky"]
    assert [c.category for c in concepts.concepts] == ["part", "object"]


@pytest.mark.parametrize(
    ("name", "text", "advice"),
    [
        ("a.csv", "label\nx\n", "needs one called 'word' or 'name'"),
        ("b.csv", "word,number\nwing,x\n", r"line 2: the number 'x' of 'wing'"),
        ("c.csv", "word,number\nwing,1\nfur,1\n", "Two concepts have number 1"),
        ("d.csv", "word,number\n,1\n", "line 2: the word is empty"),
        ("e.txt", "\n\n", "at least one concept"),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path, name, text, advice):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=advice):
        ConceptSet.from_file(tmp_path / name)


def test_identity_knows_every_word_and_records_keep_it():
    one, other = ConceptSet.from_words(["wing", "fur"]), ConceptSet.from_words(["wing", "Fur"])
    assert one.identity != other.identity
    assert ConceptSet.from_records(one.to_records()).identity == one.identity


def test_without_embeddings_nothing_is_scored():
    with pytest.raises(ValueError, match=r"call `concepts.embed\(vlm\)` first"):
        ConceptSet.from_words(["a"]).require_embeddings()


def test_new_texts_stand_beside_the_stored_set(world, caplog):
    from cefam import load_vlm

    vlm = load_vlm("tiny_clip", f"{world}/tiny_clip.pt", config=f"{world}/tiny_clip.json")
    concepts = ConceptSet((Concept(5, "wing", ("part",), "a wing"),)).embed(vlm).extended(["fur", "wing"], vlm)
    assert concepts.numbers == [5, 6, 7]
    assert concepts.find("wing") == [0, 2]
    torch.testing.assert_close(concepts.embeddings.norm(dim=1), torch.ones(3))
    assert "Only 2 concepts" not in caplog.text  # they are scored with the stored ones
    other = load_vlm("tiny_clip", f"{world}/tiny_clip.pt", config=f"{world}/tiny_clip.json")
    other.logit_scale = 5.0
    with pytest.raises(ValueError, match="embedded by another VLM"):
        concepts.extended(["fur"], other)


def test_a_template_needs_a_place_for_the_word():
    with pytest.raises(ValueError, match="where the word goes"):
        ConceptSet.from_words(["a"], template="a photo")


def test_columns_are_found_whatever_their_case_and_unknown_ones_are_said(tmp_path):
    for name in ("Category", " category", "CATEGORY "):
        (tmp_path / "words.csv").write_text(f"number,Name,{name}\n1,red,color\n")
        (concept,) = ConceptSet.from_file(tmp_path / "words.csv").concepts
        assert (concept.categories, concept.prompt) == (("color",), "a photo of a red object")
    (tmp_path / "words.csv").write_text("number,name,categry\n1,red,color\n")
    with pytest.warns(UserWarning, match="'categry' are not used. Did you mean 'category'"):
        ConceptSet.from_file(tmp_path / "words.csv")


def test_equal_prompts_are_said_once(tmp_path):
    (tmp_path / "words.csv").write_text("number,name,category\n1,wing,part\n2,wing,part\n3,wing,object\n4,beak,part\n")
    with pytest.warns(UserWarning, match=r"1 prompt\(s\) belong to several concepts.*a photo of a wing") as said:
        assert len(ConceptSet.from_file(tmp_path / "words.csv")) == 4
    assert len(said) == 1
    (tmp_path / "words.txt").write_text("wing\nwing\n")
    with pytest.warns(UserWarning, match="give them different prompts"):
        ConceptSet.from_file(tmp_path / "words.txt")


def test_comments_are_no_concepts(tmp_path):
    (tmp_path / "words.txt").write_text("# birds\nwing\n  # and more\nbeak\n\n")
    assert ConceptSet.from_file(tmp_path / "words.txt").words == ["wing", "beak"]
    (tmp_path / "words.csv").write_text(
        "# my list, 2024\nname,category\n# birds, all, of, them\nwing,part\n\nbeak,part\n"
    )
    found = ConceptSet.from_file(tmp_path / "words.csv")
    assert (found.words, found.numbers) == (["wing", "beak"], [1, 2])
    (tmp_path / "words.csv").write_text("name,number\n# birds\nwing,x\n")
    with pytest.raises(ValueError, match="line 3: the number 'x'"):
        ConceptSet.from_file(tmp_path / "words.csv")


def test_a_word_that_yaml_reads_otherwise_asks_for_quotes():
    with pytest.raises(ValueError, match=r"2024, True in the list of concepts: .* Put quotes around it"):
        ConceptSet.load([2024, True, "red"])


def test_equal_prompts_of_a_list_and_of_new_texts_are_said(world):
    from cefam import load_vlm

    with pytest.warns(UserWarning, match="The list of concepts: 1 prompt"):
        ConceptSet.load(["wing", "wing "])
    concepts = ConceptSet.from_words(["wing", "beak"]).embed(load_vlm("brodenette"))
    with pytest.warns(UserWarning, match="The concepts with the new texts"):
        concepts.extended(["wing"], load_vlm("brodenette"))
