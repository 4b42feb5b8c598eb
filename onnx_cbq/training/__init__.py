"""Straight-through training of a plan's weights, scales and biases: what `--refine` runs.

`grids.py` are the quantizers, `student.py` the net that holds them, `batches.py` what it learns from, `images.py` how
images are changed and seen, `loop.py` how it learns, `checkpoint.py` what a killed run goes on from, `run.py` one
training from its task to its result.
"""


def check_torch() -> None:
    """Find out whether training is possible.

    Raises:
        ConfigError: torch is not installed.
    """
    import onnx_cbq.torch_graph  # noqa: F401, PLC0415
