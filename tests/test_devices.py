"""Nothing mixes a device's tensors with those of the CPU; a pretended device stands for one that is not here."""

import sys

import pytest

from tests.commands import command


@pytest.mark.processes
def test_the_method_gives_the_same_on_a_device():
    """Explaining, measuring with chance rows, a training step and both validations, for five kinds of classifier."""
    status, printed = command(sys.executable, "-m", "tests.check_devices")
    assert status == 0, printed
