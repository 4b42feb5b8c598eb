"""`step`: the folder that it writes runs, agrees with what it says of itself, and errors are one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_cbq import CalibrationSet, StepConfig, SteppingSession, Steps, VerificationError, make_steps
from onnx_cbq.calibration.samples import Indices
from onnx_cbq.errors import CalibrationError, OutputError
from onnx_cbq.graph.load import load
from onnx_cbq.jobs import step as subnets
from onnx_cbq.model import Array
from onnx_cbq.runtime import median_latency
from onnx_cbq.stepping.emit import emit_steps
from onnx_cbq.stepping.record import StepRecord
from tests.command import Command, refused_without_torch
from tests.conftest import DIGITS_CARD, DIGITS_MODEL

CONFIG = StepConfig(macs=(0.2, 0.4, 0.7), updates=120, rounds=6, rate=3e-3, bfloat16=False, check_every=40)


@pytest.fixture(scope="module", autouse=True)
def _no_time_for_latency() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("onnx_cbq.jobs.step", "onnx_cbq.stepping.session"):
            patch.setattr(f"{module}.median_latency", lambda sessions, feeds, *_: median_latency(sessions, feeds, 0))
        yield


@pytest.fixture(scope="module")
def made() -> Steps:
    return make_steps(DIGITS_MODEL, DIGITS_CARD, CONFIG)


@pytest.fixture
def folder(made: Steps, tmp_path: Path) -> Path:
    made.save(tmp_path / "steps")
    return tmp_path / "steps"


def digits() -> tuple[Array, Indices]:
    """Samples that nothing was learned from, and their labels."""
    data = CalibrationSet.from_card(DIGITS_CARD, DIGITS_CARD.with_name("digits_test.npz"))
    samples = data.for_model(load(DIGITS_MODEL).inputs)
    return samples.read(np.arange(len(samples.labels)))["image"], samples.labels


def test_accuracy_rises_and_limits_are_met(made: Steps) -> None:
    found = [step.top1 for step in made.record.steps]
    assert found[0] > 50
    assert found[0] < found[-1]
    assert all(step.share <= limit for step, limit in zip(made.record.steps, CONFIG.macs, strict=True))
    assert all(step.latency_ms > 0 for step in made.record.steps)
    assert made.record.model_macs > 0
    assert any(note.startswith("training: all 120 updates") for note in made.notes)
    json.loads(made.to_json())


def test_a_session_gives_what_was_promised(folder: Path, made: Steps) -> None:
    session, (x, labels) = SteppingSession(folder), digits()
    hits, total = [], 0
    for number, step in enumerate(session.steps(x), start=1):
        total += step.macs
        assert (step.number, step.total_macs) == (number, total)
        assert step.logits.shape == (len(x), 10)
        odds = np.exp(step.logits - step.logits.max(axis=1, keepdims=True))
        np.testing.assert_allclose(step.confidence, (odds / odds.sum(axis=1, keepdims=True)).max(axis=1), rtol=1e-5)
        assert step.seconds > 0
        hits.append((step.classes == labels).mean())
    assert total == sum(step.macs for step in made.record.steps) <= 0.7 * made.record.model_macs
    np.testing.assert_allclose(100 * np.array(hits), [step.top1 for step in made.record.steps], atol=15)


def test_a_step_that_nobody_asks_for_is_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, ran = SteppingSession(folder), list[int]()

    def counted(real: Callable[..., dict[str, Array]], number: int, feeds: dict[str, Array]) -> dict[str, Array]:
        ran.append(number)
        return real(feeds)

    for number, one in enumerate(session._sessions):
        monkeypatch.setattr(one, "run", partial(counted, one.run, number))
    next(session.steps(digits()[0][:1]))
    assert ran == [0]


def test_a_repeated_run_gives_the_same_files() -> None:
    config = replace(CONFIG, updates=12, rounds=2, augment=("shift",))
    first, second = (make_steps(DIGITS_MODEL, DIGITS_CARD, config) for _ in range(2))
    assert first.files == second.files
    assert [step.sha256 for step in first.record.steps] == [step.sha256 for step in second.record.steps]


def test_quantized_steps_are_smaller_and_hardly_worse() -> None:
    quick = replace(CONFIG, updates=6, rounds=1)
    plain, small = (make_steps(DIGITS_MODEL, DIGITS_CARD, replace(quick, bits=bits)) for bits in (None, 8))
    assert small.record.bits == 8
    assert sum(map(len, small.files.values())) < sum(map(len, plain.files.values()))
    for one, other in zip(plain.record.steps, small.record.steps, strict=True):
        assert abs(one.top1 - other.top1) <= 4
        assert (one.inputs, one.outputs, one.macs) == (other.inputs, other.outputs, other.macs)
    assert "DequantizeLinear" in {node.op_type for node in onnx.load_from_string(small.files["step_2.onnx"]).graph.node}


def test_a_step_that_computes_something_else_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own check finds a weight that was changed between training and file."""
    real = emit_steps

    def damaged(*arguments: object) -> object:
        steps = real(*arguments)  # type: ignore[arg-type]
        model = steps[1].model
        name = next(t.name for t in model.skeleton.graph.initializer if len(t.dims) == 4)
        changed = model.with_constants({name: model.weight(name) * np.float32(1.01)})
        return (steps[0], replace(steps[1], model=changed), *steps[2:])

    monkeypatch.setattr(subnets, "emit_steps", damaged)
    with pytest.raises(VerificationError, match=r"step 2 differs from its subnet by"):
        make_steps(DIGITS_MODEL, DIGITS_CARD, replace(CONFIG, updates=2, rounds=1))


def test_a_folder_with_other_files_is_left_alone(made: Steps, tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds other files \('thesis.txt'\); give the name of a new folder"):
        made.save(tmp_path / "steps")
    assert [path.name for path in tmp_path.rglob("*")] == ["steps", "thesis.txt"]


def test_earlier_steps_are_replaced_as_a_whole(folder: Path, made: Steps) -> None:
    (folder / "step_9.onnx").write_bytes(b"old")
    made.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == [*sorted(made.files), "stepping.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["steps"]


def test_the_command_writes_and_shows_the_steps(command: Command, tmp_path: Path) -> None:
    output, report = tmp_path / "steps", tmp_path / "report.json"
    shape = ("--macs", "0.3,0.6", "--width", 1.5)
    done = command("step", DIGITS_MODEL, "--data", DIGITS_CARD, *shape, "--updates", 6, "-o", output, "--json", report)
    assert done.code == 0, done.err
    assert not done.err
    assert "MACs so far, %" in done.out
    assert "training: all 6 updates" in done.out
    assert "units instead of" in done.out
    written = json.loads(report.read_text())
    assert len(written["stepping"]["steps"]) == 2
    assert set(written["stepping"]["steps"][0]) == set(StepRecord.__dataclass_fields__)
    assert sorted(path.name for path in output.iterdir()) == ["step_1.onnx", "step_2.onnx", "stepping.json"]


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        (("--macs", "0.5,0.3"), 1, "--macs: expected rising shares up to 1, got (0.5, 0.3)"),
        (("--macs", "a"), 1, "--macs a: expected shares such as 0.1,0.3,0.5,0.85"),
        (("--macs", "0.0001,1"), 3, "--macs: subnet 1 cannot have 0.0% of the multiplications"),
        (("--minutes", 0), 1, "--minutes"),
        (("--quantize", 9), 1, "--quantize: expected 2 to 8, got 9"),
        (("--augment", "rotate"), 1, "--augment"),
        (("--views", 2), 1, "--views: expected 1 without --augment flip or shift, got 2"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    command: Command, tmp_path: Path, option: tuple[object, ...], code: int, message: str
) -> None:
    done = command("step", DIGITS_MODEL, "--data", DIGITS_CARD, "-o", tmp_path / "s", *option)
    assert done.code == code
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "s").exists()


def test_without_torch_it_says_so_before_the_work_begins_and_sessions_run(folder: Path) -> None:
    hidden = "import sys; sys.modules['torch'] = None\n"
    refused_without_torch("step", "missing.onnx", "--data", DIGITS_CARD, "-o", "s")
    session = (
        "import onnx_cbq, numpy as np\n"
        f"found = list(onnx_cbq.SteppingSession({str(folder)!r}).steps(np.zeros((1, 1, 8, 8), np.float32)))\n"
        "assert len(found) == 3"
    )
    subprocess.run([sys.executable, "-c", hidden + session], check=True)  # noqa: S603


def test_a_single_sample_to_learn_from_is_too_few() -> None:
    """Mean and variance of one sample normalize nothing: torch said so in a traceback."""
    images = np.zeros((2, 1, 8, 8), np.float32)
    with pytest.raises(CalibrationError, match="1 samples to learn from, 1 held back; expected 2 or more"):
        make_steps(DIGITS_MODEL, CalibrationSet.from_arrays(images, [0, 1]), CONFIG)
