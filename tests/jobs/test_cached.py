"""Runs that share a cache: nothing is computed twice, everything is computed again that may be another, same bytes."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_cbq import (
    CalibrationSet,
    QuantizeConfig,
    RateDistortionConfig,
    Result,
    RoundingConfig,
    ScoringConfig,
    quantize,
    runtime,
)
from onnx_cbq.evidence import fingerprint, kept
from onnx_cbq.evidence import pieces as pieces_module
from onnx_cbq.evidence import tables as tables_module
from onnx_cbq.stages import activations, equalize, rounding, wild
from onnx_cbq.stages.rounding import Compensate
from onnx_cbq.system.store import Entry, Store
from tests.conftest import DIGITS_CARD, DIGITS_MODEL, ROOT

CONFIG = QuantizeConfig(
    bits=3,
    samples=100,
    search=RateDistortionConfig(exchanges=4),
    compensation=RoundingConfig(refits=1, sweeps=1, rows=2000),
)
# What computes each piece: where it is looked up, and under which name.
COMPUTED: dict[str, tuple[Any, str]] = {
    "wild samples": (wild, "collect_sizes"),
    "equalization": (equalize, "_find"),
    "activation histograms": (activations, "collect_histograms"),
    "class scores": (pieces_module, "score_channels"),
    "sensitivity": (pieces_module, "fisher_squares"),
    "tables": (tables_module, "collect_moments"),
    "rounding": (rounding, "fitting_plan"),
}
# What logs say of a piece.
MADE, TAKEN = "computed, and kept in the cache", "from the cache"
EVIDENCE = COMPUTED.keys() - {"rounding"}


def sha(result: Result, folder: Path) -> str:
    path = folder / "out.onnx"
    result.save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _counting(counts: Counter[str], piece: str, whole: Callable[..., Any]) -> Callable[..., Any]:
    def count(*given: Any, **named: Any) -> Any:
        counts[piece] += 1
        return whole(*given, **named)

    return count


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each piece was computed."""
    counts: Counter[str] = Counter()
    for piece, (module, name) in COMPUTED.items():
        monkeypatch.setattr(module, name, _counting(counts, piece, getattr(module, name)))
    return counts


def run(cache: Path | None, data: Any = DIGITS_CARD, model: Any = DIGITS_MODEL, **changed: Any) -> Result:
    return quantize(model, data, replace(CONFIG, **changed), cache=cache)


def test_two_runs_without_a_cache_give_the_same_bytes(tmp_path: Path) -> None:
    """What everything below stands on."""
    assert sha(run(None), tmp_path) == sha(run(None), tmp_path)


def test_another_budget_computes_no_evidence_again(tmp_path: Path, counted: Counter[str]) -> None:
    """Guards against keys that hold what does not matter, and against pieces that come back as others."""
    folder = tmp_path / "cache"
    run(folder)
    assert counted.keys() == COMPUTED.keys()
    counted.clear()
    found = run(folder, bits=3.4)
    assert counted == {"rounding": 1}
    (note,) = (note for note in found.notes if note.startswith("from the cache: "))
    assert all(piece in note for piece in EVIDENCE)
    assert sha(found, tmp_path) == sha(run(None, bits=3.4), tmp_path)


def test_the_same_run_again_measures_and_rounds_nothing(tmp_path: Path, counted: Counter[str]) -> None:
    folder = tmp_path / "cache"
    first = run(folder)
    counted.clear()
    again = run(folder)
    assert not counted
    assert sha(again, tmp_path) == sha(first, tmp_path) == sha(run(None), tmp_path)
    assert again.method == first.method


@pytest.mark.parametrize("method", ["cbq", "uniform", "differentiable"])
def test_other_methods_and_roundings_give_the_same_bytes_from_the_cache(tmp_path: Path, method: str) -> None:
    if method == "differentiable":
        pytest.importorskip("torch")
    changed: dict[str, Any] = {"method": method, "rounding": "nearest" if method == "cbq" else "compensate"}
    folder = tmp_path / "cache"
    run(folder)
    found = [sha(run(where, **changed), tmp_path) for where in (None, folder, folder)]
    assert len(set(found)) == 1


def digits() -> tuple[np.ndarray, np.ndarray]:
    with np.load(ROOT / "calibration" / "digits.npz") as file:
        return (file["x"] / 16).astype(np.float32).transpose(0, 3, 1, 2), file["y"]


def set_of(x: np.ndarray, y: np.ndarray) -> CalibrationSet:
    return CalibrationSet.from_arrays(x, y)


def changed_weight() -> onnx.ModelProto:
    """The digits net with the last digit of one weight changed."""
    model = onnx.load(DIGITS_MODEL)
    tensor = max(model.graph.initializer, key=lambda tensor: len(numpy_helper.to_array(tensor).reshape(-1)))
    value = numpy_helper.to_array(tensor).copy()
    value.reshape(-1)[0] = np.nextafter(value.reshape(-1)[0], np.float32(1))
    tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def another_sample(x: np.ndarray, y: np.ndarray) -> CalibrationSet:
    """One that is drawn, whatever is: all are changed in a single pixel's last digit but for those of class 0."""
    x = x.copy()
    x[y == 1, 0, 4, 4] = np.nextafter(x[y == 1, 0, 4, 4], np.float32(2))
    return set_of(x, y)


def another_label(x: np.ndarray, y: np.ndarray) -> CalibrationSet:
    """A label of each class is the next one."""
    y = y.copy()
    for m in range(10):
        y[np.flatnonzero(y == m)[::5]] = (m + 1) % 10
    return set_of(x, y)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"model": changed_weight}, EVIDENCE),
        ({"data": another_sample}, EVIDENCE),
        ({"data": another_label}, EVIDENCE),
        ({"scoring": ScoringConfig(relative=True)}, {"class scores"}),
        ({"seed": 1}, EVIDENCE),
        ({"samples": 90}, EVIDENCE),
        ({"compensation": replace(CONFIG.compensation, damping=0.0051)}, {"tables", "equalization"}),
        ({"class_weights": (("3", 2.0),)}, {"tables", "equalization"}),
        ({"activation_range": "minmax"}, {"equalization"}),
        ({"search": RateDistortionConfig(exchanges=4, held_back=0.4)}, {"class scores", "sensitivity", "tables"}),
        ({"search": RateDistortionConfig(exchanges=0)}, set()),
        ({"storage": "packed"}, set()),
    ],
)
def test_what_matters_to_a_piece_and_nothing_else_has_it_computed_again(
    tmp_path: Path, counted: Counter[str], change: dict[str, Any], expected: set[str]
) -> None:
    """Guards against stale evidence, which nobody would see."""
    x, y = digits()
    folder = tmp_path / "cache"
    run(folder, set_of(x, y))
    counted.clear()
    change = dict(change)
    data = change.pop("data", set_of)(x, y)
    model = change.pop("model", lambda: DIGITS_MODEL)()
    found = run(folder, data, model, **change)
    assert counted.keys() - {"rounding"} == set(expected)
    assert sha(found, tmp_path) == sha(run(None, data, model, **change), tmp_path)


def test_a_card_that_is_edited_and_a_source_that_is_overwritten_are_read_anew(
    tmp_path: Path, counted: Counter[str]
) -> None:
    """Guards against keys of names and times: the file is of the same size, and as old as the first."""
    folder, source, card = tmp_path / "cache", tmp_path / "digits.npz", tmp_path / "card.toml"
    x, y = digits()
    np.savez(source, x=x, y=y)
    card.write_text('source = "digits.npz"\n', encoding="utf-8")
    run(folder, card)
    before = source.stat()
    np.savez(source, x=np.flip(x, axis=3), y=y)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.stat().st_size == before.st_size
    counted.clear()
    run(folder, card)
    assert counted.keys() >= EVIDENCE
    counted.clear()
    card.write_text('source = "digits.npz"\nscale = 0.5\n', encoding="utf-8")
    run(folder, card)
    assert counted.keys() >= EVIDENCE
    counted.clear()
    card.write_text('source = "digits.npz"\nscale = 1.0  # as before\n', encoding="utf-8")
    run(folder, card)
    assert not counted


@pytest.mark.parametrize("package", ["onnxruntime", "numpy"])
def test_another_version_of_a_package_has_all_computed_again(
    tmp_path: Path, counted: Counter[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    folder, known = tmp_path / "cache", runtime.versions()
    run(folder)
    counted.clear()
    monkeypatch.setattr(fingerprint, "versions", lambda: known | {package: "99.0"})
    fingerprint.environment.cache_clear()
    try:
        run(folder)
    finally:
        monkeypatch.undo()
        fingerprint.environment.cache_clear()
    assert counted.keys() == COMPUTED.keys()


def test_another_version_of_a_piece_has_that_one_computed_again(
    tmp_path: Path, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    run(folder)
    counted.clear()
    monkeypatch.setattr(kept, "SENSITIVITY", kept.SENSITIVITY + 1)
    run(folder)
    assert counted == {"sensitivity": 1}


def files_of(folder: Path) -> Iterator[Path]:
    return (entry.path for entry in Store(folder).entries())


def misfit(path: Path) -> None:
    """Other arrays under a right checksum."""
    store = Store(path.parents[1])
    found = store.read(path.stem)
    assert found is not None
    arrays = {name: np.zeros((1, *value.shape), value.dtype) for name, value in found.arrays.items()}
    facts = dict.fromkeys(found.facts, "?")
    store.write(path.stem, "kind", Entry(arrays, facts))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "version": lambda path: path.write_bytes(path.read_bytes()[:16] + b"\2" + path.read_bytes()[17:]),
    "misfit": misfit,
    "nothing": lambda path: Store(path.parents[1]).write(path.stem, "kind", Entry()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_entries_are_computed_again_with_a_note(tmp_path: Path, counted: Counter[str], kind: str) -> None:
    folder = tmp_path / "cache"
    run(folder)
    whole = {path: path.read_bytes() for path in files_of(folder)}
    for path in whole:
        DAMAGE[kind](path)
    counted.clear()
    found = run(folder)
    assert counted.keys() == COMPUTED.keys()
    for piece in COMPUTED:
        assert any(f"an entry of {piece} in the cache is damaged" in note for note in found.notes), piece
    assert sha(found, tmp_path) == sha(run(None), tmp_path)
    assert {path: path.read_bytes() for path in files_of(folder)} == whole


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_is_full_or_read_only_gives_one_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Guards against a run that ends, or that tries again for every plan."""
    tried: list[str] = []

    def put(self: Store, key: str, pieces: Any) -> None:
        tried.append(key)
        if len(tried) > 3:
            raise OSError(error, os.strerror(error))
        whole(self, key, pieces)

    whole = Store.put
    monkeypatch.setattr(Store, "put", put)
    found = run(tmp_path / "cache")
    (note,) = (note for note in found.notes if "cannot be written" in note)
    assert os.strerror(error) in note
    assert len(tried) == 4
    assert sha(found, tmp_path) == sha(run(None), tmp_path)


def test_a_folder_that_is_none_gives_one_note_of_each_kind(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("mine", encoding="utf-8")
    found = run(folder)
    assert 1 <= sum("the cache" in note for note in found.notes) <= 2
    assert folder.read_text(encoding="utf-8") == "mine"
    assert sha(found, tmp_path) == sha(run(None), tmp_path)


def test_settings_that_nothing_is_known_of_are_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards against a run that ends, and against a key that leaves out what it cannot take apart."""
    monkeypatch.setattr(
        fingerprint, "is_dataclass", lambda value: type(value) is not Compensate and is_dataclass(value)
    )
    found = run(tmp_path / "cache")
    assert any(note.startswith("not kept in the cache: rounding; nothing is known") for note in found.notes)
    assert "rounding" not in {entry.kind for entry in Store(tmp_path / "cache").entries()}
    assert sha(found, tmp_path) == sha(run(None), tmp_path)


def test_a_folder_stays_below_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is said once; another run's entries go, and the result stays."""
    folder = tmp_path / "cache"
    whole = sha(run(folder), tmp_path)
    taken = Store(folder).taken()[1]
    limit = int(1.5 * taken)
    monkeypatch.setenv("ONNX_CBQ_CACHE_SIZE", str(limit))
    assert not any("not kept" in note for note in run(folder, seed=1).notes)
    assert 0.5 * limit < Store(folder).taken()[1] <= limit
    monkeypatch.setenv("ONNX_CBQ_CACHE_SIZE", "30k")
    found = run(folder)
    (note,) = (note for note in found.notes if "not kept" in note)
    assert "the cache or its disk is full (ONNX_CBQ_CACHE_SIZE): " in note
    assert "tables" in note
    assert Store(folder).taken()[1] <= 30_000
    assert sha(found, tmp_path) == whole


def test_a_library_writes_nowhere_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNX_CBQ_CACHE", str(tmp_path / "home"))
    run(None)
    assert not (tmp_path / "home").exists()


def test_the_log_says_of_each_piece_where_it_came_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "cache"
    with caplog.at_level(logging.INFO, "onnx_cbq"):
        run(folder)
        first = list(caplog.messages)
        caplog.clear()
        run(folder)
    for piece in COMPUTED:
        made, taken = (re.compile(rf"{piece} [0-9a-f]{{12}}: {what}").fullmatch for what in (MADE, TAKEN))
        assert any(map(made, first))
        assert any(map(taken, caplog.messages))
        assert not any(map(made, caplog.messages))


def command(folder: Path, output: Path, log: Path) -> list[str]:
    settings = folder.parent / "settings.toml"
    settings.write_text(
        "bits = 3\nsamples = 100\n[search]\nexchanges = 8\n[compensation]\nrefits = 1\nsweeps = 1\nrows = 2000\n",
        encoding="utf-8",
    )
    given = [DIGITS_MODEL, "--data", DIGITS_CARD, "--config", settings, "--cache", folder, "-o", output, "--quiet"]
    start = [sys.executable, "-m", "onnx_cbq", "--log-level", "info", "--log-file", log, "quantize"]
    return [str(word) for word in (*start, *given)]


def logged(log: Path, what: str) -> set[tuple[str, str]]:
    """The pieces of which a log says something, with their keys."""
    text = log.read_text(encoding="utf-8") if log.exists() else ""
    return set(re.findall(rf"INFO ([\w ]+) ([0-9a-f]{{12}}): {what}$", text, re.MULTILINE))


def test_a_run_killed_anywhere_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Guards against half-written entries, and against finished stages that are gone through again."""
    folder, output, log = tmp_path / "cache", tmp_path / "out.onnx", tmp_path / "log"
    subprocess.run(command(folder, output, log), check=True)  # noqa: S603
    whole = output.read_bytes()
    wanted = logged(log, MADE)
    assert {piece for piece, _ in wanted} == {*COMPUTED, "plans", "layers alone"}
    chance, kills = np.random.default_rng(0), 0
    for _ in range(4):
        shutil.rmtree(folder)
        output.unlink()
        log.unlink()
        # Each at another piece, and a moment behind it.
        after, delay = int(chance.integers(1, len(wanted))), chance.uniform(0, 0.05)
        process = subprocess.Popen(command(folder, output, log))  # noqa: S603
        end = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < end:
            if len(logged(log, MADE)) >= after:
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        killed = process.wait() == -signal.SIGKILL
        kills += killed
        assert output.exists() != killed
        finished = logged(log, MADE)
        log.unlink()
        subprocess.run(command(folder, output, log), check=True)  # noqa: S603
        assert output.read_bytes() == whole
        assert logged(log, TAKEN)
        assert not logged(log, MADE) & finished
        assert logged(log, MADE) | finished == wanted
    assert kills
