"""Benchmarks on the bundled digits: `peers.py` with tools that fail, `scale.py` with small runs, `workers.py`."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_cbq import CalibrationSet
from onnx_cbq.evidence.workload import prepare
from tests.conftest import DIGITS_CARD, DIGITS_MODEL, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import children
import peer_rows
import peers
import scale
import scale_plan

UNLIMITED = children.Limits(minutes=1.0, gigabytes=4.0)
FAILING = "import sys\nprint('a log of the tool')\nsys.exit('ToolError: no operator | of this kind')\n"
# Writes the float model as its result, from the place that the driver's command line gives.
COPYING = """
import shutil, sys
shutil.copyfile(sys.argv[1], sys.argv[3])
sys.exit("not so" if sys.argv[-1] == "other" else 0)
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of our own row and two tools that need no installing: one copies the model, one of its ways fails."""
    for name, text in (("failing", FAILING), ("copying", COPYING)):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    fakes = {name: peer_rows.Peer((f"{name}==1.0",), tmp_path / f"{name}.py") for name in ("failing", "copying")}
    rows = (
        peer_rows.Row(peer_rows.OURS, "uniform", "W{} A8", ("--method", "uniform")),
        peer_rows.Row("failing", "rounding", "W{} A8", ("one",)),
        peer_rows.Row("copying", "copy", "W{} A float", ("one", "other")),
        peer_rows.Row("copying", "narrow", "W{} A float", ("one",), (2,)),
    )
    monkeypatch.setattr(peers, "PEERS", fakes)
    monkeypatch.setattr(peers, "ROWS", rows)
    monkeypatch.setattr(peers, "LATENCY_SECONDS", 0.05)
    monkeypatch.setattr(peers, "make_environment", lambda *_: Path(sys.executable))
    return tmp_path


def table(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """The cells behind the first of each row."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert {len(row) for row in rows} == {len(peers.HEADER) + len(peers.COSTS)}
    return {row[0]: row[1:] for row in rows}


def test_a_row_that_fails_says_why_and_the_table_goes_on(
    tools: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [DIGITS_MODEL, "--data", DIGITS_CARD, "--samples", "100", "--bits", "4", "--environments", tools]
    monkeypatch.setattr(sys, "argv", ["peers.py", *map(str, command)])
    peers.main()
    rows = table(capsys)
    assert rows["failing 1.0, rounding"] == ["ToolError: no operator / of this kind", "W4 A8", *[""] * 7]
    assert rows["copying 1.0, narrow"] == ["has no weights of 4 bits", "W4 A float", *[""] * 7]
    # What copies the float model has its figures; the way that failed is named.
    assert rows["copying 1.0, copy"][0] == "one; other: not so"
    assert rows["copying 1.0, copy"][2:5] == rows["float"][2:5]
    ours = rows["onnx-cbq, uniform"]
    assert float(ours[2]) > 95
    assert float(ours[4].replace(",", "")) < DIGITS_MODEL.stat().st_size / 3
    assert float(ours[7]) > 0


def test_a_child_takes_what_it_takes_and_no_more_than_it_may(tmp_path: Path) -> None:
    """Fails if a parent's memory counts for a child's, or if what a child starts is not counted."""
    block = bytearray(300 << 20)
    grandchild = "import time; block = bytearray(200 << 20); time.sleep(1)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}], check=True)"
    spent = children.run_child([sys.executable, "-c", child], tmp_path, UNLIMITED)
    assert len(block) > spent.peak > 200 << 20
    assert 1 < spent.seconds < 30
    with pytest.raises(children.ChildError, match=r"^stopped, since it took more than 0\.1 GB of memory$"):
        children.run_child([sys.executable, "-c", child], tmp_path, children.Limits(1.0, 0.1))
    with pytest.raises(children.ChildError, match=r"^stopped after 0\.01 minutes$"):
        children.run_child([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, children.Limits(0.01, 4.0))


def test_what_cannot_be_installed_says_so_and_is_tried_again(tmp_path: Path) -> None:
    """Fails if half an environment is taken for one."""
    for _ in range(2):
        with pytest.raises(children.ChildError, match=r"^cannot be installed: .*onnx_cbq_no_such"):
            children.make_environment(tmp_path, "none", ("/nowhere/onnx_cbq_no_such.whl",))
    made = children.make_environment(tmp_path, "empty", ("--no-index", "pip"))
    stamp = made.parent.parent.stat().st_mtime_ns
    assert children.make_environment(tmp_path, "empty", ("--no-index", "pip")) == made
    assert made.parent.parent.stat().st_mtime_ns == stamp


def test_tools_get_whole_batches_of_the_size_that_the_model_takes(tmp_path: Path) -> None:
    """Fails if a model of fixed batch is fed another number of samples, or if labels are fed as an input."""
    inputs = {"x": np.arange(7.0, dtype=np.float32)[:, None]}
    np.savez(tmp_path / "samples.npz", **inputs, y=np.arange(7), class_names=np.array(["a", "b"]))  # type: ignore[arg-type]
    for batch, said in (
        (3, "ValueError: ([(3, ['x']), (3, ['x'])], 5)"),
        ("N", "ValueError: ([(4, ['x'])], 5)"),
        (9, "ValueError: the model takes 9 samples at a time, and there are 7"),
    ):
        value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [batch, 1]) for name in ("x", "z")]
        node = onnx.helper.make_node("Identity", ["x"], ["z"])
        onnx.save(
            onnx.helper.make_model(onnx.helper.make_graph([node], "copy", value[:1], value[1:])), tmp_path / "m.onnx"
        )
        script = (
            f"import sys; sys.path.insert(0, {str(peer_rows.TOOLS)!r})\n"
            "from peer_task import Reader, run\n"
            "def way(task):\n"
            "    assert len(Reader(task)) == len(task.batches(1))\n"
            "    raise ValueError([(len(feeds['x']), sorted(feeds)) for feeds in task.batches(4)], task.bits)\n"
            "run({'way': way})\n"
        )
        places = [tmp_path / name for name in ("m.onnx", "samples.npz", "out.onnx")]
        command: list[str | Path] = [sys.executable, "-c", script, *places, "--bits", "5", "--way", "way"]
        with pytest.raises(children.ChildError, match=f"^{re.escape(said)}$"):
            children.run_child(command, tmp_path, UNLIMITED)


@pytest.fixture(scope="module")
def metered() -> dict[str, Any]:
    """What `scale_meter.py` measures of the digits."""
    return scale.child("scale_meter.py", samples=60, planned=1_300_000, model=DIGITS_MODEL, card=DIGITS_CARD)


def test_pieces_are_as_many_and_as_large_as_the_plan_takes_them_for(metered: dict[str, Any]) -> None:
    """Fails if a stage cuts its work otherwise, or sends something else, than the plan's formulas say."""
    work = prepare(DIGITS_MODEL, CalibrationSet.from_card(DIGITS_CARD))
    asked = argparse.Namespace(samples=[60], images=1000, classes=10, bytes=1e6, macs_per_weight=None)
    job, planned, times = scale.jobs_of(work, asked)
    for name, (count, size) in job.pieces().items():
        spent = metered["stages"][name]
        tasks = {"search": spent["tasks"], "rounding": spent["tasks"]}.get(name, 1)
        assert spent["shards"] == count * tasks, name
        if name != "activations":  # histograms are as large whatever is counted
            assert 0.3 * count * size < spent["back"] < 30 * count * size + 3000 * spent["shards"], name
    assert planned.net.weights == pytest.approx(250_000, rel=0.02)
    assert planned.net.macs > job.net.macs * times


def test_the_plan_follows_from_lines_through_what_was_measured(
    metered: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if twice the workers do not take half the time, or if what was measured and what follows are mixed up."""
    held = scale.child("scale_memory.py", samples=60, classes=10, width=4, side=8)

    def child(script: str, **values: Any) -> dict[str, Any]:
        if script == "scale_memory.py":
            net = {**held["net"], "moment_bytes": held["net"]["moment_bytes"] * values["width"]}
            net["weights"] *= values["width"]
            return {**held, **values, "net": net}
        larger = values["samples"] / 60
        stages = {name: {k: v * larger for k, v in one.items()} for name, one in metered["stages"].items()}
        net = {name: size * values.get("width", 1) for name, size in metered["net"].items()}
        return {**metered, "samples": values["samples"], "stages": stages, "net": net}

    monkeypatch.setattr(scale, "child", child)
    plans = []
    for workers in (10, 20):
        path = tmp_path / f"{workers}.json"
        command = ["--images", "5000", "--bytes", "1e6", "--image-seconds", "0.01", "--workers", str(workers)]
        monkeypatch.setattr(sys, "argv", ["scale.py", *command, "--json", str(path)])
        scale.main()
        plans.append(json.loads(path.read_text(encoding="utf-8")))
    assert set(plans[0]) == {"processor", "measured", "assumed", "extrapolated"}
    few, many = ({one["name"]: one for one in plan["extrapolated"]["stages"]} for plan in plans)
    assert few["wild samples"]["working"] == pytest.approx(2 * many["wild samples"]["working"])
    # Every sample is read once, and that alone takes so long.
    assert few["wild samples"]["working"] > 5000 * 0.01 / 10
    assert many["tables"]["local"] == few["tables"]["local"] > 0
    said = capsys.readouterr().out
    assert said.count("Measured: ") == 2 * 3
    assert said.count("Extrapolated: ") == 2 * 3


def test_a_line_says_how_far_a_third_size_is_from_what_two_foretell() -> None:
    """Fails if something that is no line passes for one."""
    straight = scale_plan.Line.through([100, 200, 400], [12.0, 22.0, 42.0])
    assert (straight.fixed, straight.slope, straight.error) == pytest.approx((2.0, 0.1, 0.0))
    assert straight.at(1000) == pytest.approx(102)
    assert scale_plan.Line.through([1, 2, 4], [1.0, 4.0, 16.0]).error == pytest.approx(6 / 16)


def test_workers_are_timed_beside_one_process() -> None:
    """Fails if the script does not run on what is bundled; how much faster they are is for an idle machine."""
    command = [sys.executable, str(ROOT / "benchmarks" / "workers.py"), "--digits", "--samples", "60", "--rounds", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603, our script
    assert ran.returncode in (0, 1), ran.stderr
    assert ran.stdout.startswith("processor: ")
    for name in ("scoring", "evaluation"):
        assert re.search(rf"^{name}: overhead of shards: \S+, required at most 0.05: ", ran.stdout, re.MULTILINE)
