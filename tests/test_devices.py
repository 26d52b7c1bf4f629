"""Nothing mixes a device's tensors with those of the CPU; a pretended device stands for one that is not here."""

import sys

import pytest

from tests.commands import command
from tests.test_explain import BUILDERS


@pytest.mark.processes
@pytest.mark.parametrize(
    "kinds", [["resnet", "vit"], pytest.param([*set(BUILDERS) - {"resnet", "vit"}], marks=pytest.mark.soak)]
)
def test_the_method_gives_the_same_on_a_device(kinds):
    """Explaining, measuring with chance rows, a training step and both validations, for kinds of classifier."""
    status, printed = command(sys.executable, "-m", "tests.check_devices", *kinds)
    assert status == 0, printed
