"""Which products run on integers, what else runs in float, and why: as onnxruntime's own graph has it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_cbq.graph.load import load
from onnx_cbq.model import Array
from onnx_cbq.targets.reading import QdqFile
from onnx_cbq.targets.running import Run
from onnx_cbq.verification.kernel_use import KernelUse, kernel_use
from tests.graphs import make_model, node
from tests.targets.files import copy, give, made, maker, nodes_of, value

SCALES: dict[str, Array] = {"s": np.array(0.02, np.float32), "z": np.array(0, np.uint8)}


def use_of(proto: onnx.ModelProto) -> KernelUse:
    file = QdqFile(load(proto))
    return kernel_use(Run(file, proto.SerializeToString()))


def between_codes(operator: str, **attributes: object) -> onnx.ModelProto:
    """One node between two convolutions of integers."""
    random = np.random.default_rng(0)
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "k s o", "kd"),
        node("Conv", "d kd", "c"),
        node("QuantizeLinear", "c s z", "cq"),
        node("DequantizeLinear", "cq s z", "cd"),
        node(operator, "cd pads" if operator == "Pad" else "cd", "e", **attributes),
        node("QuantizeLinear", "e s z", "eq"),
        node("DequantizeLinear", "eq s z", "ed"),
        node("DequantizeLinear", "l s o", "ld"),
        node("Conv", "ed ld", "f"),
        node("QuantizeLinear", "f s z", "fq"),
        node("DequantizeLinear", "fq s z"),
    ]
    codes: dict[str, Array] = {name: random.integers(-60, 60, (4, 4, 1, 1)).astype(np.int8) for name in "kl"}
    constants: dict[str, Array] = {
        **SCALES,
        **codes,
        "o": np.array(0, np.int8),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }
    if operator != "Pad":
        del constants["pads"]
    return make_model(nodes, {"x": [1, 4, 5, 5]}, ["y"], constants, opset=17)


def test_our_own_file_runs_on_integers() -> None:
    use = use_of(made("cpu"))
    assert all(use.integer)
    assert set(use.reasons) == {""}
    assert set(use.sums) == {None}
    assert (use.fallbacks, use.refusal) == ((), "")


def test_a_bias_on_another_scale_keeps_its_product_in_float() -> None:
    proto = copy(made("cpu"))
    conv = nodes_of(proto, "Conv")[1]
    bias = maker(proto, conv.input[2])
    give(proto, bias, 1, 1.5 * value(proto, bias.input[1]))
    use = use_of(proto)
    at = [on for on in range(len(use.integer)) if not use.integer[on]]
    assert at == [1]
    assert "expected the scale s_x s_w and zero point 0, found off by 50" in use.reasons[1]


def test_a_product_of_floats_says_which_of_them() -> None:
    proto = copy(made("cpu"))
    last = nodes_of(proto, "Gemm")[-1]
    last.input[0] = maker(proto, maker(proto, last.input[0]).input[0]).input[0]
    use = use_of(proto)
    assert use.reasons[-1] == "what it reads is float"
    assert not use.integer[-1]
    weight = maker(proto, last.input[1])
    scale = value(proto, weight.input[1]).reshape(-1)
    proto.graph.initializer.append(
        numpy_helper.from_array((value(proto, weight.input[0]) * scale).astype(np.float32), "plain")
    )
    last.input[1] = "plain"
    assert use_of(proto).reasons[-1] == "its weight is float"


def test_a_node_that_has_no_integer_kernel_is_named() -> None:
    """onnxruntime computes an Elu from floats, whatever stands around it."""
    use = use_of(between_codes("Elu"))
    assert [(found.name, found.operator) for found in use.fallbacks] == [("Elu_e", "Elu")]
    assert all(use.integer)
    assert use_of(between_codes("MaxPool", kernel_shape=[2, 2])).fallbacks == ()


def test_a_pad_between_codes_is_held_against_what_runs() -> None:
    proto = between_codes("Pad")
    run = Run(QdqFile(load(proto)), proto.SerializeToString())
    assert run.fused is not None
    in_float = [n.op_type for n in run.fused.nodes if n.op_type == "Pad" and run.fused.dequantizer(n.input[0])]
    assert [found.operator for found in kernel_use(run).fallbacks] == in_float


def test_a_file_that_onnxruntime_refuses_says_so() -> None:
    proto = copy(made("cpu"))
    nodes_of(proto, "MaxPool")[0].attribute.append(onnx.helper.make_attribute("unheard_of", 1))
    use = use_of(proto)
    assert "unheard_of" in use.refusal
    assert not any(use.integer)
