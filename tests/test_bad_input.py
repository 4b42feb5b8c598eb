"""Bad input through the command line: one line on stderr, the right exit code, and nothing lost or left behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from onnx_cbq.errors import VerificationError
from onnx_cbq.model import Array
from onnx_cbq.verification import comparison
from tests.command import Command, Finished
from tests.conftest import DIGITS_CARD, DIGITS_MODEL
from tests.graphs import make_model, node

PRECIOUS = b"the only copy of something"
IMAGES = np.random.default_rng(0).integers(0, 17, (40, 8, 8, 1)).astype(np.uint8)
LABELS = np.arange(40) % 10
WEIGHT = np.random.default_rng(0).standard_normal((64, 10)).astype(np.float32)


@dataclass(frozen=True)
class Job:
    """What to quantize."""

    model: Path = DIGITS_MODEL
    card: Path = DIGITS_CARD
    options: tuple[object, ...] = ()


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder with a file that must survive, and a folder for temporary files that must stay empty."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "q.onnx").write_bytes(PRECIOUS)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return folder


def quantize(command: Command, job: Job, out: Path) -> Finished:
    return command("quantize", job.model, "--data", job.card, "--output", out / "q.onnx", *job.options)


def assert_nothing_lost(out: Path) -> None:
    assert [file.name for file in out.iterdir()] == ["q.onnx"]
    assert (out / "q.onnx").read_bytes() == PRECIOUS
    left = [path.name for path in (out.parent / "temporary").iterdir()]
    assert left in ([], [".ses"])  # onnxruntime's own, one per process


def assert_explained(finished: Finished, out: Path, *words: str, code: int = 1) -> None:
    assert finished.err.startswith("onnx-cbq: ")
    assert finished.err.count("\n") == 1
    for word in words:
        assert word in finished.err
    assert (finished.code, finished.out) == (code, "")
    assert_nothing_lost(out)


def linear(classes: int = 10, **changes: Any) -> onnx.ModelProto:
    nodes = [node("Flatten", "image", "f"), node("MatMul", "f w", "logits")]
    constants = {"w": WEIGHT[:, :1].repeat(classes, axis=1)}
    return make_model(nodes, {"image": ["N", 1, 8, 8]}, ["logits"], **{"constants": constants, **changes})


def with_model(make: Callable[[], bytes | onnx.ModelProto], name: str = "m.onnx") -> Callable[[Path], Job]:
    def build(folder: Path) -> Job:
        made = make()
        (folder / name).write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
        return Job(model=folder / name)

    return build


def edited(edit: Callable[[onnx.ModelProto], object]) -> onnx.ModelProto:
    model = onnx.load(DIGITS_MODEL)
    edit(model)
    return model


def external(location: str) -> Callable[[Path], Job]:
    """A weight outside the model, at `location`, which is there only if that is outside the folder."""

    def build(folder: Path) -> Job:
        inner = folder / "model"
        inner.mkdir()
        onnx.save(linear(), inner / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        (inner / "w.bin").rename(folder / "w.bin")
        model = onnx.load(inner / "m.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            tensor.external_data[0].value = location
        (inner / "m.onnx").write_bytes(model.SerializeToString())
        return Job(model=inner / "m.onnx")

    return build


def garbage_offset(folder: Path) -> Job:
    job = external("w.bin")(folder)
    shutil.copy(folder / "w.bin", job.model.parent)
    model = onnx.load(job.model, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "offset":
            entry.value = "somewhere"
    job.model.write_bytes(model.SerializeToString())
    return job


def branching() -> onnx.ModelProto:
    branch = helper.make_graph(
        [node("MatMul", "f w", "b")], "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    )
    choice = helper.make_node("If", ["c"], ["logits"], name="choice", then_branch=branch, else_branch=branch)
    nodes = [node("ReduceMean", "image", "m", keepdims=0), node("Greater", "m zero", "c")]
    constants = {"w": WEIGHT, "zero": np.array(0, np.float32)}
    return make_model(
        [*nodes, node("Flatten", "image", "f"), choice], {"image": ["N", 1, 8, 8]}, ["logits"], constants=constants
    )


def overflowing() -> onnx.ModelProto:
    nodes = [node("Flatten", "image", "f"), node("MatMul", "f w", "m"), node("MatMul", "m v", "logits")]
    constants = {"w": np.full((64, 10), 3e38, np.float32), "v": np.eye(10, dtype=np.float32)}
    return make_model(nodes, {"image": ["N", 1, 8, 8]}, ["logits"], constants=constants)


def two_outputs() -> onnx.ModelProto:
    nodes = [node("Flatten", "image", "f"), node("MatMul", "f w", "a"), node("Neg", "a", "b")]
    return make_model(nodes, {"image": ["N", 1, 8, 8]}, ["a", "b"], constants={"w": WEIGHT})


def bad_weight(value: float) -> onnx.ModelProto:
    weight = WEIGHT.copy()
    weight[3, 3] = value
    return linear(constants={"w": weight})


CONTENT = DIGITS_MODEL.read_bytes()
MODELS: dict[str, tuple[Callable[[Path], Job], tuple[str, ...]]] = {
    "missing": (lambda folder: Job(model=folder / "none.onnx"), ("none.onnx: no such file",)),
    "folder": (lambda folder: Job(model=folder), ("expected an .onnx file, got a folder",)),
    "empty": (with_model(lambda: b""), ("not an ONNX model", "export or copy it again")),
    "truncated": (with_model(lambda: CONTENT[: len(CONTENT) // 2]), ("not an ONNX model, or cut short",)),
    "text": (with_model(lambda: b"this is no model"), ("not an ONNX model, or cut short",)),
    "json": (with_model(lambda: b'{"a": 1}', "m.json"), ("not an ONNX model, or cut short",)),
    "card-as-model": (lambda _: Job(model=DIGITS_CARD), ("not an ONNX model, or cut short",)),
    "data-too-short": (
        with_model(lambda: edited(lambda m: m.graph.initializer[0].dims.append(2))),
        ("m.onnx: damaged", "cannot reshape"),
    ),
    "unknown-type": (
        with_model(lambda: edited(lambda m: setattr(m.graph.initializer[0], "data_type", 99))),
        ("m.onnx: damaged", "99"),
    ),
    "not-utf-8": (
        with_model(lambda: CONTENT.replace(b"/0/Conv_output_0", b"/0/Conv_output_\xff")),
        ("m.onnx: damaged: a name is not UTF-8 text",),
    ),
    "dangling-input": (
        with_model(lambda: edited(lambda m: m.graph.node[0].input.__setitem__(0, "nowhere"))),
        ("onnxruntime cannot load the model", "nowhere"),
    ),
    "unknown-operator": (
        with_model(lambda: edited(lambda m: setattr(m.graph.node[0], "op_type", "Foo"))),
        ("onnxruntime cannot load the model", "Foo"),
    ),
    "external-missing": (external("w.bin"), ("external data of 'w' is missing", "'w.bin'", "copy it there")),
    "external-outside": (external("../w.bin"), ("points outside the model's folder", "'../w.bin'")),
    "external-garbage": (garbage_offset, ("m.onnx: damaged", "somewhere")),
    "no-layer": (
        with_model(lambda: make_model([node("Flatten", "image", "y")], {"image": ["N", 1, 8, 8]}, ["y"])),
        ("no layer to quantize: expected one of Conv, ConvTranspose, Gemm, MatMul",),
    ),
    "old-opset": (with_model(lambda: linear(opset=6)), ("opset 6 is too old, expected 7 or later",)),
    "future-opset": (
        with_model(lambda: linear(opset=99)),
        ("opset 99 is later than this version knows", "export it with an earlier opset"),
    ),
    "control-flow": (with_model(branching), ("no layer to quantize",)),
    "two-outputs": (with_model(two_outputs), ("several outputs", "a (3, 10)", "name the class scores with --logits")),
    "nan-weight": (with_model(lambda: bad_weight(np.nan)), ("weight 'w' holds NaN or infinity (1 of 640 values)",)),
    "inf-weight": (with_model(lambda: bad_weight(np.inf)), ("weight 'w' holds NaN or infinity (1 of 640 values)",)),
    "overflow": (with_model(overflowing), ("tensor 'm'", "holds NaN or infinity on the calibration samples")),
    "fewer-classes": (with_model(lambda: linear(8)), ("label 8 of sample 4 is outside 0..7",)),
    "more-classes": (with_model(lambda: linear(12)), ("10 class names, but the model has 12 classes",)),
}


@pytest.mark.parametrize("case", MODELS)
def test_bad_models(tmp_path: Path, out: Path, command: Command, case: str) -> None:
    build, words = MODELS[case]
    assert_explained(quantize(command, build(tmp_path), out), out, *words)


def with_card(text: str | bytes) -> Callable[[Path], Job]:
    def build(folder: Path) -> Job:
        (folder / "card.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return Job(card=folder / "card.toml")

    return build


def with_arrays(layout: str = "NHWC", **arrays: Any) -> Callable[[Path], Job]:
    def build(folder: Path) -> Job:
        np.savez(folder / "a.npz", **arrays)
        return with_card(f'source = "a.npz"\nlayout = "{layout}"')(folder)

    return build


def with_bytes(name: str, content: bytes) -> Callable[[Path], Job]:
    def build(folder: Path) -> Job:
        (folder / name).write_bytes(content)
        return with_card(f'source = "{name}"')(folder)

    return build


def spoiled(value: float) -> Array:
    images = IMAGES.astype(np.float64)
    images[7, 2, 2] = value
    return images


def images_with(name: str, content: bytes) -> Callable[[Path], Job]:
    """A folder of digits and one file more."""

    def build(folder: Path) -> Job:
        for i, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
            path = folder / "images" / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(path)
        (folder / "images" / name).parent.mkdir(exist_ok=True)
        (folder / "images" / name).write_bytes(content)
        return with_card('source = "images"')(folder)

    return build


def larger_image() -> bytes:
    with tempfile.TemporaryFile() as file:
        Image.fromarray(IMAGES[0, :, :, 0]).resize((9, 8)).save(file, "png")
        file.seek(0)
        return file.read()


DATA: dict[str, tuple[Callable[[Path], Job], tuple[str, ...]]] = {
    "card-missing": (lambda folder: Job(card=folder / "none.toml"), ("none.toml: no such card",)),
    "card-not-toml": (with_card("source ="), ("card.toml: not a TOML file",)),
    "card-not-text": (with_card(b"\xff\xfe"), ("card.toml: not a TOML file",)),
    "unknown-key": (with_card('source = "a"\nlayuot = "NHWC"'), ("unknown key 'layuot'; did you mean 'layout'?",)),
    "wrong-type": (with_card('source = "a"\nscale = "1"'), ("scale: expected a finite number, got '1'",)),
    "no-source": (with_card("scale = 1"), ("no key 'source'", "--source")),
    "source-missing": (with_card('source = "none.npz"'), ("none.npz: no such file or folder", "--source")),
    "npz-empty": (with_bytes("a.npz", b""), ("a.npz: not an .npz file, or cut short",)),
    "npz-without-x": (with_arrays(y=LABELS), ("a.npz: no array 'x' with the samples; it holds: y",)),
    "npz-without-y": (with_arrays(x=IMAGES), ("a.npz: no array 'y' with the labels; it holds: x",)),
    "npz-pickled-x": (with_arrays(x=IMAGES.astype(object), y=LABELS), ("'x.npy' holds pickled Python objects",)),
    "npz-pickled-y": (with_arrays(x=IMAGES, y=LABELS.astype(object)), ("'y.npy' holds pickled Python objects",)),
    "npz-lengths": (with_arrays(x=IMAGES, y=LABELS[:-1]), ("'x' has 40 samples but 'y' has 39 labels",)),
    "npz-no-samples": (with_arrays(x=IMAGES[:0], y=LABELS[:0]), ("no samples; expected at least one",)),
    "labels-above": (with_arrays(x=IMAGES, y=LABELS + 1), ("label 10 of sample 9 is outside 0..9",)),
    "labels-below": (with_arrays(x=IMAGES, y=LABELS - 1), ("label -1 of sample 0 is outside 0..9",)),
    "labels-float": (with_arrays(x=IMAGES, y=LABELS * 0.5), ("labels 'y' must be whole numbers", "got float64")),
    "labels-scalar": (with_arrays(x=IMAGES, y=np.int64(1)), ("labels 'y' must be whole numbers", "of shape ()")),
    "one-class": (
        with_arrays(x=IMAGES, y=LABELS * 0 + 7),
        ("a.npz: all samples are of class '7'; expected samples of at least two classes",),
    ),
    "nan-sample": (with_arrays(x=spoiled(np.nan), y=LABELS), ("a.npz: sample 7 holds NaN or infinity",)),
    "inf-sample": (with_arrays(x=spoiled(np.inf), y=LABELS), ("a.npz: sample 7 holds NaN or infinity",)),
    "huge-sample": (with_arrays(x=spoiled(1e300), y=LABELS), ("a.npz: sample 7 holds NaN or infinity",)),
    "complex-samples": (with_arrays(x=IMAGES * 1j, y=LABELS), ("samples are complex128", "wants float32")),
    "wrong-channels": (
        with_arrays(x=IMAGES.repeat(3, axis=3), y=LABELS),
        ("samples are (8, 8, 3) (layout = \"NHWC\"), model input 'image' wants (1, 8, 8)",),
    ),
    "wrong-size": (with_arrays(x=IMAGES[:, :7], y=LABELS), ("samples are (7, 8, 1)", "wants (1, 8, 8)")),
    "wrong-layout": (
        with_arrays("NCHW", x=IMAGES, y=LABELS),
        ('samples are (8, 8, 1) (layout = "NCHW")', 'set layout = "NHWC" in the card'),
    ),
    "unreadable-image": (
        images_with("3/broken.png", b"no image"),
        ("3/broken.png: cannot be read as an image", "--skip-unreadable"),
    ),
    "image-of-another-size": (images_with("3/wide.png", larger_image()), ("differ in size", "set resize and crop")),
    "class-folder-without-images": (images_with("a/notes.txt", b""), ("11 class names, but the model has 10",)),
    "one-image": (with_bytes("a.png", b""), ("a.png: one file is no data set",)),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_data(tmp_path: Path, out: Path, command: Command, case: str) -> None:
    build, words = DATA[case]
    assert_explained(quantize(command, build(tmp_path), out), out, *words)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--bits", "0"), "--bits: expected a number above 0 and up to 8, got 0"),
        (("--bits", "8.5"), "--bits: expected a number above 0 and up to 8, got 8.5"),
        (("--bits", "-1"), "--bits: expected a number above 0 and up to 8, got -1"),
        (("--bits", "nan"), "--bits: expected a number above 0 and up to 8, got nan"),
        (
            ("--bits", "3.5", "--method", "uniform"),
            "--bits: expected a whole number with --method uniform and --storage int8, got 3.5",
        ),
        (("--method", "best"), "--method: expected "),
        (("--activation-bits", "1"), "--activation-bits: expected 2 to 8, or 0 for float, got 1"),
        (("--activation-bits", "9"), "--activation-bits: expected 2 to 8, or 0 for float, got 9"),
        (("--activation-range", "max"), "--activation-range: expected mse or percentile or minmax, got max"),
        (("--rounding", "up"), "--rounding: expected compensate or nearest or learned, got up"),
        (
            ("--rounding", "learned", "--rounding-updates", "0"),
            "--rounding-updates: expected a number above 0, got 0",
        ),
        (("--keep", "12=9"), "--keep 12: expected 0 to 8 bits, got 9"),
        (("--keep", "12"), "--keep 12: expected NAME=NUMBER"),
        (("--keep", "12=four"), "--keep 12=four: expected NAME=NUMBER"),
        (("--keep", "nothing*=4"), "--keep nothing*=4: no layer has such a name; the layers are: "),
        (("--keep", "*=4", "--bits", "3"), "--bits 3 cannot be met: the layers of --keep *=4 alone take it up"),
        (("--classes", "1,one"), "--classes 'one': no such class; the classes are: 0, 1, 2"),
        (("--class-weight", "11=2"), "--class-weight '11': no such class; did you mean '1'?"),
        (("--class-weight", "1"), "--class-weight 1: expected NAME=NUMBER"),
        (("--class-weight", "1=-2"), "--class-weight 1: expected a number of at least 0, got -2"),
        (("--class-weight", "1=nan"), "--class-weight 1: expected a number of at least 0, got nan"),
        (("--classes", "1", "--class-weight", "1=0"), "--class-weight: every class that counts has weight 0"),
        (("--clusters", "1"), "--clusters: expected at least 2 groups, got 1"),
        (("--clusters", "11"), "--clusters 11: the model has 10 classes"),
        (("--clusters", "none.txt"), "--clusters none.txt: no such text file"),
        (("--max-drop", "-1"), "--max-drop: expected points of accuracy, 0 to 100, got -1"),
        (
            ("--max-drop", "1", "--method", "cbq"),
            "--method cbq and --storage int8: expected --bits beside it, got --max-drop",
        ),
        (("--max-class-drop", "101"), "--max-class-drop: expected points of accuracy, 0 to 100, got 101"),
        (("--max-class-drop", "nan"), "--max-class-drop: expected points of accuracy, 0 to 100, got nan"),
        (("--samples", "-1"), "--samples: expected a number above 0, got -1"),
        (("--samples", "9"), "--samples 9: there are 10 classes; expected at least one of each"),
        (("--seed", "-1"), "--seed: expected a number of at least 0, got -1"),
        (
            ("--logits", "nothing"),
            "--logits 'nothing': the model has no such output; expected one of its outputs: logits",
        ),
        (("--source", "none.npz"), "none.npz: no such file or folder of samples"),
    ],
)
def test_settings_outside_what_is_possible(
    out: Path, command: Command, options: tuple[str, ...], expected: str
) -> None:
    assert_explained(quantize(command, Job(options=options), out), out, expected)


def test_wrong_usage_exits_2(out: Path, command: Command) -> None:
    for arguments in (("quantize", DIGITS_MODEL), ("quantize", DIGITS_MODEL, "--data", DIGITS_CARD, "--bits", "four")):
        assert command(*arguments).code == 2
    assert_nothing_lost(out)


@pytest.mark.parametrize("option", ["--output", "--json"])
@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("missing/q", "the folder '{parent}' does not exist; create it first"),
        ("q.onnx/q", "cannot be written: Not a directory"),
        (".", "is a folder; give the name of the file to write"),
        ("/dev/null", "is a device or pipe; give the name of the file to write"),
        ("../model.onnx", "is also another file of this command"),
        ("../card.toml", "is also another file of this command"),
    ],
    ids=["missing-folder", "below-a-file", "folder", "device", "model", "card"],
)
def test_outputs_that_cannot_be_written_are_refused_before_the_work(
    tmp_path: Path,
    out: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    target: str,
    expected: str,
) -> None:
    """Renamed over /dev/null or over the float model, the result would destroy it."""
    shutil.copy(DIGITS_MODEL, tmp_path / "model.onnx")
    (tmp_path / "card.toml").write_text('source = "none.npz"')
    monkeypatch.setattr("onnx_cbq.jobs.quantize.quantize", None)
    path = out / target
    finished = quantize(command, Job(tmp_path / "model.onnx", tmp_path / "card.toml", (option, path)), out)
    assert_explained(finished, out, f"{path}: ", expected.format(parent=path.parent))
    assert (tmp_path / "model.onnx").read_bytes() == CONTENT
    assert not Path("/dev/null").is_file()


def test_json_must_not_replace_the_result(out: Path, command: Command) -> None:
    finished = quantize(command, Job(options=("--json", out / "q.onnx")), out)
    assert_explained(finished, out, "is also another file of this command")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_may_not_be_written_to_is_explained(out: Path, command: Command) -> None:
    out.chmod(0o500)
    finished = quantize(command, Job(), out)
    out.chmod(0o700)
    assert_explained(finished, out, "cannot be written: Permission denied")


def refuse(error: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    return fail


@pytest.mark.parametrize("error", [errno.EACCES, errno.EROFS], ids=["permission", "read-only"])
def test_folder_that_refuses_a_file_is_explained(
    out: Path, command: Command, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    monkeypatch.setattr(tempfile, "mkstemp", refuse(error))
    assert_explained(quantize(command, Job(), out), out, f"q.onnx: cannot be written: {os.strerror(error)}")


def uniform(out: Path) -> Job:
    return Job(options=("--method", "uniform", "--json", out / "q.json"))


class AtFinalWrite:
    """Fails a function when it is reached after verification, which writes a file too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, function: str, failure: BaseException) -> None:
        self.verified = self.failed = False
        module, _, name = function.rpartition(".")
        original = getattr(sys.modules[module], name)

        def wrapped(*arguments: Any, **settings: Any) -> Any:
            if self.verified:
                self.failed = True
                raise failure
            return original(*arguments, **settings)

        def note(*_: Any) -> Any:
            self.verified = True
            return check(*_)

        check = comparison.compare
        monkeypatch.setattr("onnx_cbq.verification.prove.compare", note)
        monkeypatch.setattr(function, wrapped)


@pytest.mark.parametrize("function", ["os.fsync", "os.chmod", "os.replace", "tempfile.mkstemp"])
def test_disk_full_while_writing(out: Path, command: Command, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    hook = AtFinalWrite(monkeypatch, function, OSError(errno.ENOSPC, "No space left on device"))
    finished = quantize(command, uniform(out), out)
    assert hook.failed
    assert_explained(finished, out, "q.onnx: cannot be written: No space left on device; nothing was left behind")


@pytest.mark.parametrize("function", ["os.fsync", "os.replace"])
def test_stop_while_writing(out: Path, command: Command, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    hook = AtFinalWrite(monkeypatch, function, KeyboardInterrupt())
    finished = quantize(command, uniform(out), out)
    assert hook.failed
    assert_explained(finished, out, "stopped; no unfinished file was left behind", code=130)


def test_disk_full_while_verifying(out: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    assert_explained(quantize(command, uniform(out), out), out, "No space left on device")


def test_disk_full_while_writing_scores(out: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "savez_compressed", refuse(errno.ENOSPC))
    finished = command("score", DIGITS_MODEL, "--data", DIGITS_CARD, "--output", out / "q.onnx", "--samples", "20")
    assert_explained(finished, out, "q.onnx: cannot be written: No space left on device")


STAGES = (
    "jobs.quantize.prepare",
    "stages.samples.draw",
    "evidence.pieces.score_channels",
    "evidence.pieces.make_tables",
    "evidence.pieces.fisher_squares",
    "evidence.pieces.PlanMeasure",
    "stages.activations.collect_histograms",
    "methods.rate_distortion.search_plan",
    "stages.compensation.collecting",
    "stages.solution.remove_channels",
    "stages.solution.emit_qdq",
    "verification.prove.check_file",
    "verification.prove.compare",
)


@pytest.mark.parametrize("stage", STAGES)
def test_stop_during_a_stage(out: Path, command: Command, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"onnx_cbq.{stage}", stop)
    finished = quantize(command, Job(), out)
    assert_explained(finished, out, "stopped; no unfinished file was left behind", code=130)


def test_stop_while_a_thread_reads_samples(out: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnx_cbq.calibration.prepare.Preparation.apply", stop)
    assert_explained(quantize(command, Job(), out), out, "stopped", code=130)


@pytest.mark.parametrize("check", ["check_file", "compare"])
def test_failed_verification_exits_3_and_leaves_nothing(
    out: Path, command: Command, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    def fail(*_: object) -> None:
        raise VerificationError("layer 'a': the codes of channel 3 do not fit 4 bits")

    monkeypatch.setattr(f"onnx_cbq.verification.prove.{check}", fail)
    finished = quantize(command, uniform(out), out)
    assert_explained(finished, out, "the codes of channel 3 do not fit 4 bits", code=3)


def test_message_of_several_lines_becomes_one(out: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries whose message we pass on may write more than one."""

    def fail(*_: object) -> None:
        raise VerificationError("first\n  second")

    monkeypatch.setattr("onnx_cbq.verification.prove.check_file", fail)
    assert_explained(quantize(command, uniform(out), out), out, "first   second", code=3)


def reference(folder: Path, name: str, model: onnx.ModelProto | None) -> Path:
    if model is not None:
        onnx.save(model, folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (None, "reference.onnx: no such file"),
        (linear(12), "the models to compare have 12 and 10 classes; expected the same number"),
        (linear(8), "the models to compare have 8 and 10 classes; expected the same number"),
        (bad_weight(np.nan), "reference.onnx: weight 'w' holds NaN or infinity"),
    ],
    ids=["missing", "more-classes", "fewer-classes", "nan"],
)
def test_bad_references(
    tmp_path: Path, out: Path, command: Command, model: onnx.ModelProto | None, expected: str
) -> None:
    path = reference(tmp_path, "reference.onnx", model)
    options = ("--data", DIGITS_CARD, "--reference", path, "--json", out / "e.json")
    assert_explained(command("evaluate", DIGITS_MODEL, *options), out, expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("evaluate", DIGITS_MODEL, "--data", "none.toml"), "none.toml: no such card"),
        (
            ("evaluate", DIGITS_MODEL, "--data", DIGITS_CARD, "--json", "none/e.json"),
            "the folder 'none' does not exist",
        ),
        (("evaluate", "none.onnx", "--data", DIGITS_CARD), "none.onnx: no such file"),
        (("score", DIGITS_MODEL, "--data", DIGITS_CARD, "--output", "none/s.npz"), "the folder 'none' does not exist"),
        (("score", DIGITS_MODEL, "--data", DIGITS_CARD, "--samples", "3"), "expected at least one of each"),
        (("score", "none.onnx", "--data", DIGITS_CARD), "none.onnx: no such file"),
        (("inspect", "none.onnx"), "none.onnx: no such file"),
        (("inspect", DIGITS_CARD), "not an ONNX model, or cut short"),
    ],
)
def test_other_commands_explain_themselves_too(
    out: Path, command: Command, arguments: tuple[object, ...], expected: str
) -> None:
    assert_explained(command(*arguments), out, expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_signals_stop_a_real_process_without_leaving_anything(out: Path, number: signal.Signals) -> None:
    """Sent as soon as the first of nine temporary files is there, so that it never comes after the end."""
    temporary = out.parent / "temporary"
    arguments: list[str | Path] = ["-m", "onnx_cbq", "quantize", DIGITS_MODEL, "--data", DIGITS_CARD]
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, *arguments, "--output", out / "q.onnx", "--curve"],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(temporary.rglob("*.onnx")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    printed, message = process.communicate(timeout=120)
    finished = Finished(process.returncode, printed, message)
    assert_explained(finished, out, "stopped; no unfinished file was left behind", code=130)
