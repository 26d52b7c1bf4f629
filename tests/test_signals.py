"""Ctrl-C and SIGTERM: a status that says so, nothing half-written, and the next run is as if nothing had been."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

import cefam
from cefam import Trained
from cefam.commands import main
from tests.commands import RESULTS, TWO, Forked, good_call, run

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SOURCE = str(Path(cefam.__file__).parent)


LONG = {
    "prepare": (["--kind=brodenette", "--source=val", "--count=100000", "--folder=out"], "out/*.part"),
    "features": (["--views=1000"], "out/part-*.safetensors"),
    "fit": (["--trainer.max_epochs=100000"], "runs/fit/*/checkpoints/last.ckpt"),
    "evaluate": (["--data.batch_size=1", "--model.memory_limit=1"], "out/.parts/0*.npz"),
    "demo": (["--scenes=100000"], "out/scenes/train/*.part"),
}


DEFAULT = (("fit", signal.SIGINT), ("evaluate", signal.SIGTERM), ("prepare", signal.SIGHUP))


def stopped(verb, sign, options, begun, to_all=True):
    """Status and words of a verb that gets a signal once a file that it writes is there; all its processes must end."""
    process = Forked([verb, *options])
    try:
        for _ in range(1200):
            if list(Path().glob(begun)) or process.poll() is not None:
                break
            time.sleep(0.05)
        (os.killpg if to_all else os.kill)(process.pid, sign)
        status = process.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return status, process.output()


@pytest.mark.processes
@pytest.mark.parametrize(
    ("verb", "sign"),
    [
        pytest.param(verb, sign, marks=() if (verb, sign) in DEFAULT else pytest.mark.soak)
        for verb, sign in [*itertools.product(LONG, [signal.SIGINT, signal.SIGTERM]), ("prepare", signal.SIGHUP)]
    ],
)
def test_signals_end_a_verb_cleanly(verb, sign, world, prepared, trained, tmp_path):
    """Stopped in the middle of its work: the status says so, finished files are whole, nothing half-written stays."""
    more, begun = LONG[verb]
    status, said = stopped(verb, sign, [*good_call(verb, world, prepared, trained), *more], begun)
    assert status == STATUS[sign], said
    assert "Traceback" not in said
    assert said.rstrip().endswith("; finished files are kept.")
    assert not list(tmp_path.rglob("*.part"))
    for path in tmp_path.rglob("*.ckpt"):
        Trained.read(path)
    for path in tmp_path.rglob("*.safetensors"):
        load_file(path)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("verb", "sign", "to_all"),
    [
        ("fit", signal.SIGTERM, False),
        pytest.param("fit", signal.SIGTERM, True, marks=pytest.mark.soak),
        pytest.param("evaluate", signal.SIGTERM, False, marks=pytest.mark.soak),
        pytest.param("evaluate", signal.SIGINT, True, marks=pytest.mark.soak),
    ],
)
def test_signals_end_all_processes(verb, sign, to_all, world, prepared, trained, tmp_path):
    """As a cluster sends it: to the first process, or to every one; as a terminal does: to every one."""
    more, begun = LONG[verb]
    options = [*good_call(verb, world, prepared, trained), *more, *TWO]
    status, said = stopped(verb, sign, options, begun, to_all)
    assert status == STATUS[sign], said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.part"))


class Moment:
    """Counts the lines of cefam that run below a verb, and sends a signal before one of them."""

    def __init__(self, at=None, sign=signal.SIGINT):
        self.at, self.sign, self.lines, self.place = at, sign, 0, ""

    def __call__(self, frame, event, argument):
        path = frame.f_code.co_filename
        if not path.startswith(SOURCE) or path.endswith(("cli.py", "signals.py", "__init__.py")):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                self.place = f"{Path(path).name}:{frame.f_lineno}, line {self.lines}"
                sys.settrace(None)
                signal.raise_signal(self.sign)
        return self


@contextlib.contextmanager
def watched(moment):
    before = sys.gettrace()
    sys.settrace(moment)
    try:
        yield moment
    finally:
        sys.settrace(before)


def contents(folder):
    """Files of a verb that are the same on every run."""
    names = [path for pattern in RESULTS for path in Path(folder).rglob(pattern) if path.suffix != ".ckpt"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


MOMENTS = {"prepare": 12, "features": 10, "fit": 8, "validate": 5, "evaluate": 8, "export": 10}


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=() if verb in ("prepare", "export") else pytest.mark.soak) for verb in MOMENTS]
)
def test_stopped_at_any_moment(verb, world, prepared, trained, tmp_path, capsys):
    """At lines spread over the whole of a verb's work, in turn Ctrl-C and SIGTERM; then the verb is run again."""
    options = good_call(verb, world, prepared, trained)
    with watched(Moment()) as whole:
        assert run(verb, *options) == 0
    wanted = contents(tmp_path)
    assert whole.lines > 100
    draw = random.Random(verb)
    share = whole.lines / MOMENTS[verb]
    for number in range(MOMENTS[verb]):
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        sign = (signal.SIGINT, signal.SIGTERM)[number % 2]
        at = int(share * (number + draw.random())) + 1
        with watched(Moment(at, sign)) as moment:
            status = run(verb, *options)
        assert moment.lines == at
        assert status == STATUS[sign], moment.place
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert said.rstrip().endswith("; finished files are kept.")
        left = contents(tmp_path)
        assert not [name for name in left if name.endswith(".part")], moment.place
        assert all(wanted[name] == content for name, content in left.items()), moment.place
        for path in tmp_path.rglob("*.ckpt"):
            Trained.read(path)
        if verb != "fit" or not list(tmp_path.rglob("*.ckpt")):  # a run that has begun is taken up by --ckpt_path
            assert run(verb, *options) == 0
            assert contents(tmp_path) == wanted


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_turned_into_another_error_is_still_one(monkeypatch, capsys, number, status):
    """As in the middle of an import, where whoever catches it may fail in ways of its own."""

    def verb(arguments):
        try:
            signal.raise_signal(number)
        except BaseException:
            raise RecursionError("maximum recursion depth exceeded") from None

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr("cefam.commands.demo.run", verb, raising=False)
    assert main(["demo"]) == status
    assert "finished files are kept" in capsys.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    monkeypatch.setattr("cefam.commands.demo.run", lambda arguments: {}["gone"], raising=False)
    assert main(["demo"]) == 70  # the signal of an earlier run is forgotten


@pytest.mark.soak
def test_a_data_worker_that_is_told_to_end_does_so_without_a_word(world, prepared, trained, tmp_path, capfd):
    """Ctrl-C and SIGTERM go to all processes of a terminal or a job; the first one says what there is to say."""
    options = [*good_call("evaluate", world, prepared, trained), "--data.num_workers=2", "--data.batch_size=1"]
    status, said = stopped("evaluate", signal.SIGTERM, [*options, "--model.memory_limit=1"], "out/.parts/0*.npz")
    assert status == 143, said
    assert said.rstrip().endswith("; finished files are kept.")
    assert "_signals.py" not in said  # what a handler raises in a worker would be printed with its place
