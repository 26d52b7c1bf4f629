"""The sum of the stages: the literal second derivation, and what windows and smoothing may and may not do."""

KINDS = ["resnet", "vit", "swin", "bypass"]


def test_placeholder():
    pass
