"""The four commands on the bundled digits: what they write, print and return."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image
from rich.console import Console

from onnx_cbq import CalibrationSet, QuantizeConfig, RefineConfig, VerificationError
from onnx_cbq.cli import progress
from onnx_cbq.jobs.written_settings import as_options
from tests.command import Command
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node

DIGITS = ("--data", DIGITS_CARD)
SAMPLES = DIGITS_CARD.with_name("digits.npz")


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def hits(model: Path, samples: Path = SAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of onnxruntime on samples prepared by hand, and the labels."""
    with np.load(samples) as stored:
        images, labels = (stored["x"].astype(np.float32) / 16).transpose(0, 3, 1, 2), stored["y"]
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0].argmax(axis=1), labels


def accuracies(model: Path) -> tuple[float, dict[str, float]]:
    predicted, labels = hits(model)
    per_class = {str(m): 100 * float((predicted == labels)[labels == m].mean()) for m in range(10)}
    return 100 * float((predicted == labels).mean()), per_class


@pytest.mark.parametrize(
    ("options", "bits", "slack"),
    [
        (("--bits", "4"), 4.0, 0.05),
        (("--bits", "2.5", "--samples", "200", "--seed", "1"), 2.5, 0.05),
        (("--bits", "3.5", "--method", "cbq"), 3.5, 0.1),
        (("--method", "uniform", "--bits", "8"), 8.0, 1e-9),
        (("--method", "uniform", "--bits", "3", "--activation-bits", "0"), 3.0, 1e-9),
    ],
    ids=["default", "fraction", "cbq", "uniform", "weights-only"],
)
def test_quantize_proves_what_it_costs(
    tmp_path: Path, command: Command, options: tuple[str, ...], bits: float, slack: float
) -> None:
    """The JSON holds what a separate run finds, to the last digit, and what we work out by hand."""
    model, figures, again = tmp_path / "q.onnx", tmp_path / "q.json", tmp_path / "again.json"
    finished = command("quantize", DIGITS_MODEL, *DIGITS, "--output", model, "--json", figures, *options)
    assert (finished.code, finished.err) == (0, "")
    found = read(figures)
    assert bits - slack < found["average_bits"] <= bits

    assert command("evaluate", model, *DIGITS, "--reference", DIGITS_MODEL, "--json", again).code == 0
    evaluated = read(again)
    for key in ("top1", "top5", "per_class", "worst_class", "samples", "bytes"):
        assert evaluated[key] == found["quantized"][key]
        assert evaluated["reference"][key] == found["float"][key]
    assert evaluated["agreement"] == found["agreement"]

    for path, side in ((model, found["quantized"]), (DIGITS_MODEL, found["float"])):
        top1, per_class = accuracies(path)
        assert side["top1"] == pytest.approx(top1)
        assert side["per_class"] == pytest.approx(per_class)
        assert side["bytes"] == path.stat().st_size
        assert side["latency_ms"] > 0
    assert found["agreement"] == pytest.approx(100 * float((hits(model)[0] == hits(DIGITS_MODEL)[0]).mean()))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again.json", "q.json", "q.onnx"]


OPTIONS: dict[tuple[str, ...], dict[str, Any]] = {
    (): {},
    ("--keep", "12=8", "--keep", "a=b=0"): {"keep": (("12", 8), ("a=b", 0))},
    ("--classes", "1, 3,8"): {"classes": ("1", "3", "8")},
    ("--class-weight", "3=2.5", "--class-weight", "8=0"): {"class_weights": (("3", 2.5), ("8", 0.0))},
    ("--clusters", "4"): {"clusters": 4},
    ("--max-drop", "0.5"): {"max_drop": 0.5},
    ("--max-class-drop", "3", "--bits", "2.5"): {"max_class_drop": 3.0, "bits": 2.5},
    ("--curve",): {"curve": (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)},
    ("--curve", "--method", "uniform"): {"curve": (2.0, 3.0, 4.0, 5.0, 6.0, 8.0), "method": "uniform"},
    ("--rounding", "nearest", "--method", "cbq"): {"rounding": "nearest", "method": "cbq"},
    ("--activation-bits", "4", "--activation-range", "minmax"): {"activation_bits": 4, "activation_range": "minmax"},
    ("--refine",): {"refine": RefineConfig()},
    ("--refine", "--refine-minutes", "2", "--alpha", "0.5", "--augment", "flip", "--augment", "shift"): {
        "refine": RefineConfig(minutes=2.0, alpha=0.5, augment=("flip", "shift"))
    },
    ("--refine", "--augment", "shift", "--views", "5"): {"refine": RefineConfig(augment=("shift",), views=5)},
    ("--samples", "0", "--seed", "7", "--logits", "y"): {"samples": None, "seed": 7, "logits": "y"},
}


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_every_option_becomes_its_setting_and_no_other(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """The defaults of the command are those of the library."""
    seen: list[QuantizeConfig] = []

    def stop(_: Path, __: CalibrationSet, config: QuantizeConfig, *___: object) -> None:
        seen.append(config)
        raise VerificationError("far enough")

    monkeypatch.setattr("onnx_cbq.jobs.quantize.quantize", stop)
    assert command("quantize", DIGITS_MODEL, *DIGITS, "--output", tmp_path / "q.onnx", *options).code == 3
    (found,), expected = seen, QuantizeConfig(**OPTIONS[options])
    assert found.choice == expected.choice
    for name in ("curve", "logits", "ignore_outputs", "refine"):
        assert getattr(found, name) == getattr(expected, name)
    assert as_options(found) == as_options(expected)


def test_ranges_of_activations_are_told_apart(tmp_path: Path, command: Command) -> None:
    """At 4 bits the three ways to choose them give different files, all of which work."""
    options = ("--output", tmp_path / "q.onnx", "--method", "uniform", "--activation-bits", "4", "--activation-range")
    made = set()
    for kind in ("mse", "percentile", "minmax"):
        assert command("quantize", DIGITS_MODEL, *DIGITS, *options, kind).code == 0
        made.add((tmp_path / "q.onnx").read_bytes())
        assert accuracies(tmp_path / "q.onnx")[0] > 90
    assert len(made) == 3


def test_average_bits_count_every_weight_of_every_layer(tmp_path: Path, command: Command) -> None:
    command("quantize", DIGITS_MODEL, *DIGITS, "-o", tmp_path / "q.onnx", "--json", tmp_path / "q.json")
    found = read(tmp_path / "q.json")
    graph = onnx.load(DIGITS_MODEL).graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    layers = [weights[n.input[1]] for n in graph.node if n.op_type in ("Conv", "Gemm")]
    assert [len(bits) for bits in found["bits"].values()] == [len(weight) for weight in layers]
    total = sum(sum(bits) * weight[0].size for bits, weight in zip(found["bits"].values(), layers, strict=True))
    assert found["average_bits"] == pytest.approx(total / sum(weight.size for weight in layers))


def test_json_says_how_the_result_came_about(tmp_path: Path, command: Command) -> None:
    options = ("--samples", "100", "--seed", "3", "--logits", "logits", "--quiet")
    command("quantize", DIGITS_MODEL, *DIGITS, "--output", tmp_path / "q.onnx", "--json", tmp_path / "q.json", *options)
    found = read(tmp_path / "q.json")
    assert found["calibration_samples"] == 100
    assert found["class_names"] == [str(m) for m in range(10)]
    assert found["left_float"] == []
    assert all(seconds >= 0 for seconds in found["seconds"].values())
    assert {"load", "statistics", "activations", "search", "rounding", "emit", "verify"} <= set(found["seconds"])
    assert found["versions"]["onnxruntime"] == onnxruntime.__version__
    assert found["settings"] == {"samples": 100, "seed": 3, "logits": "logits"}
    assert found["method"]["name"] == "rate-distortion"


def test_too_few_samples_are_said(tmp_path: Path, command: Command) -> None:
    target = tmp_path / "q.onnx"
    finished = command("quantize", DIGITS_MODEL, *DIGITS, "--output", target, "--json", tmp_path / "q.json")
    note = "only 500 of the 1000 samples wanted: no class has its share"
    assert note in read(tmp_path / "q.json")["notes"]
    assert f"note: {note}" in finished.out
    assert f"note: {note}" in command("score", DIGITS_MODEL, *DIGITS).out


def test_table_shows_before_and_after(tmp_path: Path, command: Command) -> None:
    options = ("--output", tmp_path / "q.onnx", "--json", tmp_path / "q.json")
    lines = command("quantize", DIGITS_MODEL, *DIGITS, *options).out.splitlines()
    found = read(tmp_path / "q.json")
    before, after = found["float"], found["quantized"]
    rows = {line[:20].strip(): line[20:].split() for line in lines}
    assert rows["top-1 accuracy, %"] == [f"{before['top1']:.2f}", f"{after['top1']:.2f}"]
    worst = [(f"{min(side['per_class'].values()):.2f}", f"({side['worst_class']})") for side in (before, after)]
    assert rows["worst class, %"] == [*worst[0], *worst[1]]
    assert rows["average bits"] == ["32", f"{found['average_bits']:.3f}"]
    assert rows["bytes"] == [f"{before['bytes']:,}", f"{after['bytes']:,}"]
    assert any(line.startswith("seconds: load ") and "verify" in line for line in lines)


def test_result_lies_beside_the_model_by_default(tmp_path: Path, command: Command) -> None:
    shutil.copy(DIGITS_MODEL, tmp_path / "net.v2.onnx")
    command("quantize", tmp_path / "net.v2.onnx", *DIGITS, "--method", "uniform")
    assert {file.name for file in tmp_path.iterdir()} == {"net.v2.onnx", "net.v2.quantized.onnx"}
    assert (tmp_path / "net.v2.onnx").read_bytes() == DIGITS_MODEL.read_bytes()


def test_same_seed_gives_the_same_file(tmp_path: Path, command: Command) -> None:
    made = []
    for seed in ("0", "0", "1"):
        command("quantize", DIGITS_MODEL, *DIGITS, "--samples", "50", "--seed", seed, "--output", tmp_path / "q.onnx")
        made.append((tmp_path / "q.onnx").read_bytes())
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_quiet_prints_nothing(tmp_path: Path, command: Command) -> None:
    for arguments in (
        ("quantize", DIGITS_MODEL, *DIGITS, "--output", tmp_path / "q.onnx", "--method", "uniform"),
        ("evaluate", DIGITS_MODEL, *DIGITS),
        ("score", DIGITS_MODEL, *DIGITS),
    ):
        finished = command(*arguments, "--quiet")
        assert (finished.code, finished.out, finished.err) == (0, "", "")


def test_every_long_stage_has_a_bar(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(progress, "ERR", Console(file=terminal, force_terminal=True, width=100))
    assert command("quantize", DIGITS_MODEL, *DIGITS, "--output", tmp_path / "q.onnx").code == 0
    for stage in ("scoring", "tables", "sensitivity", "search", "activations", "rounding", "evaluation"):
        assert stage in terminal.getvalue()
    assert "100%" in terminal.getvalue()


def test_a_bar_whose_figures_change_stays_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training tells its loss with every step; a bar for each of them would fill the screen."""
    terminal = io.StringIO()
    monkeypatch.setattr(progress, "ERR", Console(file=terminal, force_terminal=True, width=100, height=50))
    with progress.progress_bars(quiet=False) as tell:
        for number in range(1, 30):
            tell(f"train, loss {number / 100:.2f}", number, 29)
    assert "train, loss 0.29" in terminal.getvalue()
    assert max(frame.count("train") for frame in terminal.getvalue().split("\x1b[2K")) == 1


def test_source_replaces_the_card_s(tmp_path: Path, command: Command) -> None:
    other = DIGITS_CARD.with_name("digits_test.npz")
    command("evaluate", DIGITS_MODEL, *DIGITS, "--source", other, "--json", tmp_path / "e.json")
    predicted, labels = hits(DIGITS_MODEL, other)
    found = read(tmp_path / "e.json")
    assert found["samples"] == len(labels) != 500
    assert found["top1"] == pytest.approx(100 * float((predicted == labels).mean()))


def test_evaluate_without_reference(tmp_path: Path, command: Command) -> None:
    finished = command("evaluate", DIGITS_MODEL, *DIGITS, "--json", tmp_path / "e.json")
    found = read(tmp_path / "e.json")
    assert (found["reference"], found["agreement"], found["top5"]) == (None, None, None)
    for name, accuracy in found["per_class"].items():
        assert [name, f"{accuracy:.2f}"] in [line.split() for line in finished.out.splitlines()]


def test_more_than_ten_classes_have_a_top_5(tmp_path: Path, command: Command) -> None:
    """Held against a ranking by hand; one class has no samples, which is said and is no 0 %."""
    random = np.random.default_rng(0)
    weight, x = random.standard_normal((6, 12)).astype(np.float32), random.standard_normal((220, 6)).astype(np.float32)
    y = np.arange(220) % 11
    onnx.save(make_model([node("MatMul", "x w")], {"x": ["N", 6]}, ["y"], {"w": weight}), tmp_path / "m.onnx")
    np.savez(tmp_path / "a.npz", x=x, y=y)
    (tmp_path / "card.toml").write_text('source = "a.npz"')
    options = ("--data", tmp_path / "card.toml", "--json", tmp_path / "e.json")
    finished = command("evaluate", tmp_path / "m.onnx", *options)
    found = read(tmp_path / "e.json")
    ranks = np.argsort(-(x @ weight), axis=1)
    assert found["top1"] == pytest.approx(100 * float((ranks[:, 0] == y).mean()))
    assert found["top5"] == pytest.approx(100 * float((ranks[:, :5] == y[:, None]).any(axis=1).mean()))
    assert found["per_class"]["11"] is None
    assert "note: no samples of 1 classes, the first of them '11'" in finished.out
    assert "top-5 accuracy" in finished.out


def test_skipped_images_are_counted(tmp_path: Path, command: Command) -> None:
    with np.load(SAMPLES) as stored:
        for i, (image, label) in enumerate(zip(stored["x"][::5], stored["y"][::5], strict=True)):
            path = tmp_path / "images" / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(path)
    (tmp_path / "images" / "3" / "broken.png").write_bytes(b"no image")
    options = ("--data", DIGITS_CARD, "--source", tmp_path / "images", "--skip-unreadable")
    for arguments in (
        ("score", DIGITS_MODEL, "--samples", "50"),
        ("quantize", DIGITS_MODEL, "--output", tmp_path / "q.onnx", "--json", tmp_path / "q.json", "--samples", "50"),
        ("evaluate", DIGITS_MODEL, "--json", tmp_path / "e.json"),
    ):
        finished = command(*arguments, *options)
        assert (finished.code, finished.err) == (0, "")
        assert "note: 1 unreadable images were left out" in finished.out
    assert read(tmp_path / "e.json")["samples"] == 100
    assert "1 unreadable images were left out" in read(tmp_path / "q.json")["notes"]


def test_score_writes_what_it_shows(tmp_path: Path, command: Command) -> None:
    finished = command("score", DIGITS_MODEL, *DIGITS, "--output", tmp_path / "s.npz", "--samples", "200")
    assert (finished.code, finished.err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in finished.out.splitlines() if line}
    with np.load(tmp_path / "s.npz", allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["samples"], [20] * 10)
        layers = [name.removeprefix("beta/") for name in stored.files if name.startswith("beta/")]
        assert len(layers) == 4
        for layer in layers:
            beta, gamma = stored[f"beta/{layer}"], stored[f"gamma/{layer}"]
            assert beta.shape == (10, len(gamma))
            assert ((beta >= 0) & (beta <= 1)).all()
            assert ((gamma >= 0) & (gamma <= 10)).all()
            assert (gamma <= beta.sum(axis=0) + 1e-6).all()
            assert rows[layer][0] == str(len(gamma))
            assert [float(rows[layer][i]) for i in (2, 4)] == pytest.approx([gamma.min(), gamma.max()], abs=0.005)
    assert "from 200 samples of 10 classes" in finished.out


def test_inspect_lists_the_layers_of_a_float_model(command: Command) -> None:
    finished = command("inspect", DIGITS_MODEL)
    assert (finished.code, finished.err) == (0, "")
    rows = [line.split() for line in finished.out.splitlines()]
    assert [row[1:] for row in rows[1:5]] == [
        ["Conv", "16x1x3x3", "16", "144"],
        ["Conv", "24x16x3x3", "24", "3,456"],
        ["Conv", "40x24x3x3", "40", "8,640"],
        ["Gemm", "10x40", "10", "400"],
    ]
    assert finished.out.splitlines()[-1] == "4 layers, 12,640 weights"


def test_inspect_reads_the_bits_from_the_file_itself(tmp_path: Path, command: Command) -> None:
    """The plan travels in the file: nothing else is there to read it from."""
    made = tmp_path / "made" / "q.onnx"
    made.parent.mkdir()
    command("quantize", DIGITS_MODEL, *DIGITS, "--output", made, "--json", tmp_path / "q.json", "--bits", "3")
    found = read(tmp_path / "q.json")
    moved = tmp_path / "alone" / "other.onnx"
    moved.parent.mkdir()
    made.rename(moved)
    lines = command("inspect", moved).out.splitlines()
    assert "…" not in "".join(lines)
    widths = [int(word) for word in lines[0].split("average")[1].split()]
    assert widths == sorted({width for bits in found["bits"].values() for width in bits})
    for line, (name, bits) in zip(lines[1:5], found["bits"].items(), strict=True):
        assert line.split()[0] == name
        counts = [bits.count(width) for width in widths if width in bits]
        assert [int(word) for word in line.split()[4:]] == counts
        assert line.split()[3] == f"{np.mean(bits):.2f}"
    assert f"method rate-distortion, {found['average_bits']:.3f} bits per weight" in lines[-2]


@pytest.mark.parametrize("name", ["quantize", "evaluate", "score", "inspect"])
def test_help_explains_every_option_with_its_default(
    command: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    finished = command(name, "--help")
    assert finished.code == 0
    rows = [line for line in finished.out.splitlines() if " --" in line and "Usage" not in line]
    assert len(rows) >= 1
    for row in rows:
        assert "default: " in row or "[required]" in row or "--help" in row, row


def test_command_without_arguments_shows_the_commands(command: Command) -> None:
    shown = command().out + command("--help").out
    for name in ("quantize", "evaluate", "score", "inspect"):
        assert shown.count(f" {name} ") >= 2
