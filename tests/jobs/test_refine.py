"""`--refine`: what is written is what was trained, its state is kept as long as needed, torch is optional."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from onnx_cbq import QuantizeConfig, quantize
from onnx_cbq.jobs.refine import Refinement, quantized_by, refine
from onnx_cbq.stages.solution import emit_solution
from onnx_cbq.targets.lint import lint
from onnx_cbq.torch_graph import EXACT, can_fuse
from onnx_cbq.training import setup
from onnx_cbq.training.lesson import Lesson
from onnx_cbq.training.student import Student
from tests.command import Command, refused_without_torch
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.training.digits import COARSE, QUICK, make_solution


def test_what_is_written_is_what_was_trained() -> None:
    """The file in onnxruntime beside the student in torch: a grid or a hook in the wrong place would part them."""
    scene, solution = make_solution()
    trained, refined, notes = refine(scene, COARSE.choice.method, solution, Refinement(replace(QUICK, updates=40)))
    assert "kept (update" in notes[0]
    work = scene.work
    session = onnxruntime.InferenceSession(emit_solution(trained, refined).to_proto().SerializeToString())
    feeds = work.samples.read(np.arange(300))
    found = session.run(None, feeds)[0]
    start = quantized_by(trained, refined)
    student = Student(work.model, work.layers, start, Lesson(work.logits), EXACT).eval()
    with torch.no_grad():
        expected = student({name: torch.from_numpy(value) for name, value in feeds.items()}).numpy()
    # Sums in another order put single activations on the next of 16 levels; a scale that is off moves all of them.
    size = np.abs(expected).max()
    assert np.median(np.abs(found - expected)) < 1e-5 * size
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.98


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 8, "method": "uniform"},
        {"bits": 6, "storage": "archive"},
        {"bits": 8, "codebook": "kmeans"},
        {"bits": 8, "method": "uniform", "target": "vitis"},
        {"bits": 8, "method": "uniform", "target": "qnn"},
        {"bits": 8, "method": "uniform", "target": "tensorrt"},
        {"bits": 8, "method": "uniform", "target": "arm64"},
    ],
    ids=["pairs", "archive", "shared", "vitis", "qnn", "tensorrt", "arm64"],
)
def test_training_keeps_to_the_target(settings: dict[str, object]) -> None:
    """The file is held against its target before it is returned; here again, with what was trained in it."""
    config = replace(QuantizeConfig(samples=200), refine=replace(QUICK, updates=20), **settings)  # type: ignore[arg-type]
    result = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    assert lint(result.model, config.choice.target) == ()


def test_training_in_code_that_is_made_for_the_net(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It learns as it does operator by operator, and the same every time: only sums are rounded in another order."""
    if not can_fuse(torch.device("cpu")):
        pytest.skip("no C++ compiler that torch.compile can use")
    plain, config = (replace(COARSE, refine=replace(QUICK, updates=60, check_every=20, fused=f)) for f in (False, True))
    monkeypatch.setattr(setup, "fusing_pays", lambda config, *_: config.fused)
    expected, first, again = (quantize(DIGITS_MODEL, DIGITS_CARD, each) for each in (plain, config, config))
    assert not [record for record in caplog.records if record.name == "onnx_cbq" and record.levelname == "WARNING"]
    assert first.model.to_proto().SerializeToString() == again.model.to_proto().SerializeToString()
    start = quantize(DIGITS_MODEL, DIGITS_CARD, COARSE).quantized.top1
    assert first.quantized.top1 - start > (expected.quantized.top1 - start) / 2 > 0


def test_a_net_that_cannot_be_compiled_is_trained_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against a training that ends there, and against one that is slow in silence."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("a compiler's own fault")

    config = replace(COARSE, refine=QUICK)
    expected = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    monkeypatch.setattr(setup, "fusing_pays", lambda *_: True)
    monkeypatch.setattr(setup, "can_fuse", lambda *_: True)
    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    found = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    assert "a compiler's own fault" in caplog.text
    assert found.model.to_proto().SerializeToString() == expected.model.to_proto().SerializeToString()


@pytest.mark.parametrize("storage", ["int8", "packed"])
def test_training_raises_accuracy_and_leaves_the_plan(storage: str) -> None:
    config = replace(COARSE, storage=storage)
    plain = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    better = quantize(DIGITS_MODEL, DIGITS_CARD, replace(config, refine=replace(QUICK, updates=100, check_every=20)))
    assert better.quantized.top1 > plain.quantized.top1
    for name, bits in plain.plan.bits.items():
        np.testing.assert_array_equal(better.plan.bits[name], bits)
    assert any(note.startswith("--refine: all 100 updates") for note in better.notes)


def test_channels_of_0_bits_are_still_removed() -> None:
    """Their biases are trained, and taken up by the layers behind."""
    config = QuantizeConfig(bits=0.7, samples=100, refine=replace(QUICK, updates=8))
    result = quantize(DIGITS_MODEL, DIGITS_CARD, config)
    assert result.average_bits <= 0.7
    assert result.removal.removed


def test_nothing_is_left_beside_the_file(command: Command, tmp_path: Path) -> None:
    arguments = ("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--bits", 2, "--samples", 100)
    output = tmp_path / "q.onnx"
    done = command(*arguments, "--output", output, "--refine", "--refine-updates", 3, "--augment", "shift")
    assert done.code == 0, done.err
    assert [path.name for path in tmp_path.iterdir()] == ["q.onnx"]
    assert "--refine: all 3 updates" in done.out
    # Their accuracy is not that of the images as they are.
    assert "samples held back and changed by shift" in " ".join(done.out.split())


def test_the_same_training_again_is_found(tmp_path: Path) -> None:
    config = replace(COARSE, refine=replace(QUICK, updates=4))
    plain, first, again = (quantize(DIGITS_MODEL, DIGITS_CARD, config, cache=c) for c in (None, tmp_path, tmp_path))
    assert not any("from the cache" in note for note in first.notes)
    assert any(note.startswith("from the cache: ") and "refined weights" in note for note in again.notes)
    assert any(note.startswith("--refine: all 4 updates") for note in again.notes)
    contents = {found.model.to_proto().SerializeToString() for found in (plain, first, again)}
    assert len(contents) == 1


@pytest.mark.parametrize(
    "option",
    [
        ("--refine-minutes", 1),
        ("--refine-updates", 9),
        ("--alpha", 0.5),
        ("--views", 2),
    ],
)
def test_an_option_of_the_training_needs_the_training(command: Command, option: tuple[object, ...]) -> None:
    done = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, *option)
    assert done.code == 2
    assert f"only for --refine; leave out {option[0]}" in done.err


def test_settings_out_of_range_are_named(command: Command) -> None:
    for option, value in (("--refine-minutes", 0), ("--alpha", 1.5), ("--augment", "rotate"), ("--views", 2)):
        done = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--refine", option, value)
        assert done.code == 1
        assert option in done.err


def test_an_archive_is_trained_within_its_bytes(command: Command, tmp_path: Path) -> None:
    """Codes that learn without a price would spread out."""
    output = tmp_path / "q.cbqz"
    few = ("--samples", 100, "--activation-bits", 0, "--refine-updates", 40)
    arguments = ("--storage", "archive", "--bytes", 4000, "--refine", *few)
    done = command("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--output", output, *arguments)
    assert done.code == 0, done.err
    # Whether the start is kept depends on its few bytes of room.
    assert "--refine: all 40 updates" in done.out
    assert 0.97 * 4000 <= output.stat().st_size <= 4000


def test_shared_values_are_trained(command: Command, tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    arguments = ("--codebook", "kmeans", "--storage", "packed", "--bits", 2, "--samples", 100)
    done = command(
        "quantize",
        DIGITS_MODEL,
        "--data",
        DIGITS_CARD,
        "--output",
        output,
        *arguments,
        "--refine",
        "--refine-updates",
        9,
    )
    assert done.code == 0, done.err
    assert "--refine: all 9 updates" in done.out
    assert done.out.count("share 4 values") == 1


def test_without_torch_it_says_so_before_the_work_begins(tmp_path: Path) -> None:
    refused_without_torch(
        "quantize", "missing.onnx", "--data", DIGITS_CARD, "--output", tmp_path / "q.onnx", "--refine"
    )
