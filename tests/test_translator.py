"""The translator, its closed-form derivative and its masking, against autograd and a literal loop."""

import pytest
import torch

from cefam import Translator
from cefam.attribution.scores import similarity, similarity_gradient
from cefam.translator import distillation_losses

CHANNELS = [3, 5, 7]


@pytest.fixture
def translator():
    torch.manual_seed(0)
    return Translator(CHANNELS, embedding_dim=6, hidden_dims=[8, 9]).double()


def pooled_of(batch):
    return [torch.randn(batch, c).double() for c in CHANNELS]


def test_input_is_concatenated_deepest_first(translator):
    pooled = pooled_of(2)
    x = torch.cat([pooled[2], pooled[1], pooled[0]], dim=1)
    hidden = torch.tanh(translator.fc2(torch.tanh(translator.fc1(x))))
    torch.testing.assert_close(translator(pooled), translator.fc3(hidden))


def test_closed_form_derivative_is_autograds(translator):
    pooled = [z.requires_grad_() for z in pooled_of(3)]
    text = torch.randn(4, 6).double()
    image, concept = torch.tensor([2, 0, 2, 1]), torch.tensor([0, 3, 1, 1])
    scores = similarity(translator(pooled), text, 30.0, -2.0)
    embedding, pull_back = translator.linearize([z.detach() for z in pooled])
    found = pull_back(similarity_gradient(embedding[image], text[concept], 30.0), image)
    for row in range(4):
        expected = torch.autograd.grad(scores[image[row], concept[row]], pooled, retain_graph=True)
        for stage in range(3):
            torch.testing.assert_close(found[stage][row], expected[stage][image[row]])


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_masking_is_the_literal_loop(translator, stage):
    pooled = pooled_of(4)
    channels = torch.stack([torch.randperm(CHANNELS[stage])[:3] for _ in range(4)])
    values = torch.randn(4, 3).double()
    change = values - pooled[stage].gather(1, channels)
    found = translator.masked(translator.first_layer(pooled), translator.columns(stage), channels, change)
    assert found.shape == (4, 3, 6)
    for row in range(4):
        z = [p[row : row + 1].clone() for p in pooled]
        for n in range(3):
            z[stage][0, channels[row, n]] = values[row, n]
            torch.testing.assert_close(found[row, n], translator(z)[0])


def test_another_classifiers_features_are_refused(translator):
    with pytest.raises(ValueError, match="belongs to another classifier"):
        translator([torch.zeros(1, 3), torch.zeros(1, 5)])


@pytest.mark.parametrize("bad", [{"channels": []}, {"channels": [0]}, {"channels": [4], "hidden_dims": [3]}])
def test_impossible_sizes_are_refused(bad):
    with pytest.raises(ValueError, match="needs at least one stage"):
        Translator(**{"embedding_dim": 4, **bad})


def test_published_widths():
    assert Translator([256, 512, 1024, 2048], 512).hidden_dims == [2048, 1024]
    assert Translator([64, 128, 256, 512], 512).hidden_dims == [1024, 1024]
    assert Translator([2048], 512).hidden_dims == [1024, 1024]


def test_losses_from_a_pencil():
    student, teacher = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    losses = distillation_losses(student, teacher, text, logit_scale=10.0, logit_bias=-7.0, similarity_weight=0.5)
    assert losses.embedding.item() == pytest.approx((9 + 4) / 2)  # the teacher is not normalized
    # cosines: student (.6, .8), teacher (0, 1); times 10; mean of squares (36 + 4) / 2, times one half
    assert losses.similarity.item() == pytest.approx(0.5 * 20)
    assert losses.total.item() == pytest.approx(16.5)


@pytest.mark.parametrize("options", [{"text": None}, {"text": torch.eye(2), "similarity_weight": 0.0}])
def test_without_similarity_loss_texts_do_not_matter(options):
    losses = distillation_losses(torch.ones(1, 2), torch.zeros(1, 2), **options)
    assert losses.similarity.item() == 0
    assert losses.total.item() == losses.embedding.item() == 1
