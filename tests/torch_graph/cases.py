"""Situations beyond those of the gradient rules: what is not differentiated, other operator sets, uneven windows."""

from __future__ import annotations

from tests.gradient.cases import IMAGE, SIGNAL, VOLUME, X2, Case, floats, ints, number

NOT_DIFFERENTIATED = [
    *(Case(op, (X2,)) for op in ("Ceil", "Floor", "Round", "Sign", "IsNaN", "Shape", "Size")),
    *(Case(op, (X2, X2)) for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")),
    *(
        Case(op, (IMAGE,), {"axis": axis, "keepdims": keep})
        for op in ("ArgMax", "ArgMin")
        for axis, keep in ((1, 0), (-1, 1))
    ),
    Case("ArgMax", ((3, 40),), {"axis": 1, "select_last_index": 1}, low=-0.0, high=0.0, note="all-equal"),
    Case("Round", ((3, 64),), {}, low=-3.0, high=3.0),
    Case("Shape", (IMAGE,), {"start": -2}),
    Case("Shape", (IMAGE,), {"start": 1, "end": -1}),
    Case("IsInf", (X2,), {"detect_negative": 0}, opset=20),
    Case("Cast", (X2,), {"to": "float"}, opset=13),
]

OTHER_OPERATOR_SETS = [
    Case("ReduceMean", (IMAGE,), {"axes": [2, 3], "keepdims": 0}, opset=13),
    Case("ReduceMax", (IMAGE,), {"axes": [-1]}, opset=13),
    Case("ReduceMin", (IMAGE,), {}, opset=13, note="all-axes"),
    Case("ReduceProd", (X2,), {"axes": [1]}, opset=13),
    Case("ReduceProd", (IMAGE,), {"keepdims": 0}, (ints(-1, 1),)),
    Case("ReduceLogSum", (X2,), {}, (ints(1),), low=0.2),
    Case("ReduceL1", (X2,), {"noop_with_empty_axes": 1}),
    Case("ReduceL2", (IMAGE,), {"axes": [2, 3]}, opset=13),
    Case("Split", ((3, 6),), {"axis": 1}, opset=13, outputs=3, note="equal"),
    Case("Split", ((3, 7),), {"axis": 1, "num_outputs": 3}, outputs=3, note="last-smaller"),
    Case("Squeeze", ((3, 1, 4, 1),), {}, note="all"),
    Case("Squeeze", ((3, 1, 4, 1),), {}, (ints(-1, 1),), note="negative"),
    Case("Unsqueeze", (X2,), {}, (ints(-1, 0),), note="negative"),
    Case("Flatten", (IMAGE,), {"axis": 2}),
    Case("Flatten", (IMAGE,), {"axis": -1}),
    Case("Flatten", (IMAGE,), {"axis": 0}),
    Case("Reshape", (IMAGE,), {}, (ints(0, -1, 7, 0),), note="zeros-keep"),
    Case("Reshape", (IMAGE,), {}, (ints(0, 0, -1),), note="batch-and-channels"),
    Case("Reshape", (X2,), {"allowzero": 1}, (ints(-1, 2),), note="allowzero"),
    Case("Transpose", ((3, 2, 4),), {}, note="reversed"),
    Case("Gelu", (X2,), {}, opset=20, note="erf"),
    Case("Shrink", (X2,), {"lambd": 0.6, "bias": 0.3}),
    Case("Swish", (X2,), {"alpha": 1.5}, opset=24),
    Case("MeanVarianceNormalization", (IMAGE,), {"axes": [2, 3]}),
    Case("Clip", (X2,), {}, (number(0.5), number(-0.5)), note="bounds-crossed"),
    Case("Pow", (X2,), {}, (number(0.5),), low=0.2, note="root"),
    Case("LayerNormalization", ((3, 2, 4),), {"axis": -2}, (floats(4), floats(2, 4)), note="scale-broadcast"),
    Case("Gemm", (X2,), {"beta": 0.5}, (floats(4, 5), floats(1, 5)), note="bias-row"),
    Case("Gemm", (X2,), {}, (floats(4, 5), number(0.7)), note="bias-scalar"),
    Case("Gemm", (X2,), {}, (floats(4, 5), floats(1)), note="bias-of-one"),
    Case("Expand", ((3, 4, 1),), {}, (ints(4, 1),), note="ones-keep"),
    Case("Resize", (IMAGE,), {"mode": "linear", "antialias": 1, "axes": [2, 3]}, (None, None, ints(3, 4))),
]

WINDOWS = [
    *(
        Case(op, (IMAGE,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": pads, "ceil_mode": 1, **more})
        for op, more in (
            ("MaxPool", {}),
            ("AveragePool", {}),
            ("AveragePool", {"count_include_pad": 1}),
            ("LpPool", {}),
        )
        for pads in ([0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0])
    ),
    Case("MaxPool", (VOLUME,), {"kernel_shape": [2, 2, 2], "strides": [2, 1, 2], "pads": [0, 1, 0, 1, 0, 0]}),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2]}, note="pads-over-half"),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2], "count_include_pad": 1}),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [2, 3], "auto_pad": "VALID", "strides": [2, 1]}),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "count_include_pad": 1}),
    Case("LpPool", (SIGNAL,), {"kernel_shape": [3], "p": 1}),
    Case("GlobalAveragePool", (VOLUME,)),
    Case("Conv", (IMAGE,), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}, (floats(2, 4, 3, 2),)),
    Case(
        "ConvTranspose",
        (IMAGE,),
        {"strides": [3, 2], "pads": [0, 1, 2, 0], "output_padding": [1, 1]},
        (floats(4, 3, 3, 3), floats(3)),
        note="uneven-with-bias",
    ),
    Case("ConvTranspose", (IMAGE,), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}, (floats(4, 3, 3, 3), floats(3))),
    Case("ConvTranspose", (IMAGE,), {"strides": [2, 2], "auto_pad": "VALID"}, (floats(4, 3, 3, 3),)),
]

MORE_CASES = [*NOT_DIFFERENTIATED, *OTHER_OPERATOR_SETS, *WINDOWS]
