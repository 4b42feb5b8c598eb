"""What `debug` prints fits a terminal of 80 columns, leads with what hurts, and cuts names so that they stay apart."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from onnx_cbq.jobs.debug_result import DebugResult, Deviating, LayerDebug
from onnx_cbq.report.debugging import LISTED_LAYERS, debug_table
from onnx_cbq.verification.kernel_use import Fallback

LAYER = LayerDebug(
    name="layer",
    node="node",
    operator="Conv",
    weight_type="int8",
    input_type="uint8",
    integer=True,
    reason="",
    pair_sum=None,
    deviation=None,
    weight_snr=40.0,
    weight_gain=1.0,
    input_snr=41.0,
    clipped=0.0,
    weight_alone_snr=40.0,
    input_alone_snr=41.0,
    alone_snr=38.0,
    accumulated_snr=35.0,
    gain=1.0,
    divergence=1e-3,
    share=5.0,
)
NAMES = [f"/model/features/features.{i}/conv/conv.0/conv.0.{i}/Conv_quant" for i in range(20)]


def result_of(*layers: LayerDebug, **more: object) -> DebugResult:
    known: dict[str, object] = {
        "layers": layers,
        "unmatched": (),
        "unmatched_in_file": (),
        "divergence": 0.1,
        "agreement": 97.0,
        "samples": 64,
        "deviations": (),
        "fallbacks": (),
        "processor": "x86-64, AVX2",
        "notes": (),
        "versions": {},
    }
    return DebugResult(**{**known, **more})  # type: ignore[arg-type]


def shown(result: DebugResult, *, all_layers: bool = False, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, soft_wrap=True, markup=False, emoji=False, highlight=False).print(
        debug_table(result, all_layers=all_layers)
    )
    return [line.rstrip() for line in out.getvalue().splitlines()]


def crowded() -> DebugResult:
    """The longest that can come in every place."""
    reason = "a_tensor_of_a_long_name: expected the scale s_x s_w and zero point 0, found off by 66.7%"
    worst = replace(
        LAYER, deviation=30, alone_snr=-110.0, accumulated_snr=-110.0, weight_snr=110.0, input_snr=110.0, share=100.0
    )
    layers = [replace(worst, name=name, divergence=1.0 / (i + 1), pair_sum=246) for i, name in enumerate(NAMES)]
    layers[3] = replace(layers[3], integer=False, reason=reason)
    return result_of(
        *layers,
        deviations=(Deviating("Conv a", "t", 30, 1000), Deviating("Conv b", "u", 3, 10)),
        fallbacks=(Fallback("Pad_1", "Pad", ""), Fallback("Resize_1", "Resize", reason)),
        unmatched=tuple(NAMES),
        unmatched_in_file=tuple(NAMES),
        notes=("a note that says more than fits into a line, as those of samples that are left out usually do",),
    )


def test_every_line_fits() -> None:
    """Names without blanks are whole in the lines, so that they can be copied; in the table they are cut."""
    for line in shown(crowded(), all_layers=True):
        assert len(line) <= 80 or any(name in line.replace(",", " ").split() for name in NAMES), line
    assert not any(len(line) > 80 for line in shown(replace(crowded(), unmatched=(), unmatched_in_file=()))[-20:])


def test_a_layer_takes_one_line_and_keeps_the_end_of_its_name() -> None:
    lines = shown(crowded(), all_layers=True)
    start = next(i for i, line in enumerate(lines) if line.startswith("layer "))
    rows = lines[start + 1 : start + 1 + len(NAMES)]
    for row, name in zip(rows, NAMES, strict=True):
        first = row.split()[0]
        assert first.startswith("...")
        assert name.endswith(first[3:])
        assert row.endswith("saturates, 30 codes")
    assert lines[start + 1 + len(NAMES)] == ""


def test_kernels_have_a_column_where_they_differ() -> None:
    alike = shown(result_of(LAYER, replace(LAYER, name="b")))
    assert not any(" runs " in line for line in alike)
    mixed = shown(result_of(LAYER, replace(LAYER, name="b", integer=False, reason="its weight is float")))
    assert any(" runs " in line for line in mixed)
    assert "  in float: b: its weight is float" in mixed
    none = shown(result_of(replace(LAYER, integer=False, reason="what it reads is float")))
    assert not any(" runs " in line for line in none)
    assert "  in float: all: what it reads is float" in none


def test_those_that_cost_most_are_listed() -> None:
    layers = [replace(LAYER, name=f"l{i:02}", divergence=i / 100) for i in range(LISTED_LAYERS + 3)]
    lines = shown(result_of(*layers))
    listed = [line.split()[0] for line in lines if line.startswith("l") and line[1:3].isdigit()]
    assert listed == [f"l{i:02}" for i in range(LISTED_LAYERS + 2, 2, -1)]
    assert "3 layers that cost less: --all-layers shows them" in lines
    assert lines[1].startswith("hurts most: l14, 5 % of the cost of all layers")
    everything = shown(result_of(*layers), all_layers=True)
    assert sum(line.startswith("l") and line[1:3].isdigit() for line in everything) == len(layers)


def test_what_is_not_known_is_a_dash() -> None:
    unknown = replace(LAYER, divergence=None, share=None, weight_snr=None, input_snr=None, weight_alone_snr=None)
    lines = shown(result_of(unknown))
    assert lines[1] == "no layer costs anything by itself"
    assert next(line for line in lines if line.startswith("layer ") and "nats" not in line).split()[1:5] == ["-"] * 4


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({}, "weights"),
        ({"input_alone_snr": 30.0}, "input"),
        ({"input_alone_snr": 30.0, "clipped": 3.24}, "clips 3.2 %"),
        ({"weight_gain": 3.0, "weight_snr": -6.0}, "weights x 3.00"),
        ({"gain": 0.4, "weight_alone_snr": 4.4}, "output x 0.40"),
        # At 2 bits weights are smaller by a tenth and more, and that is the least of their noise.
        ({"weight_gain": 0.85, "weight_snr": 6.0}, "weights"),
        ({"deviation": 30, "weight_gain": 3.0, "weight_snr": -6.0}, "saturates, 30 codes"),
        # Weights that lie in the file as floats may have been rounded all the same.
        ({"weight_type": "float", "input_type": "float"}, "weights"),
        ({"weight_alone_snr": 110.0, "input_alone_snr": 104.0}, ""),
        ({"weight_alone_snr": None}, ""),
    ],
)
def test_the_cause_is_what_costs_most(changes: dict[str, float | str | None], cause: str) -> None:
    assert replace(LAYER, **changes).cause == cause  # type: ignore[arg-type]
