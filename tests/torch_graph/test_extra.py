"""torch is an extra: everything else works without it, and whoever asks for training is told how to get it."""

from __future__ import annotations

import subprocess
import sys

EVERYTHING_ELSE = """
import importlib, pathlib, onnx_cbq
root = pathlib.Path(onnx_cbq.__file__).parent
for path in root.rglob("*.py"):
    name = ".".join(("onnx_cbq", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
    trains = name.startswith(("onnx_cbq.torch_graph", "onnx_cbq.training."))
    if not trains or name == "onnx_cbq.training.records":
        importlib.import_module(name)
"""


def run(code: str) -> str:
    """What `code` prints in a Python of its own: torch cannot be taken out of one that has loaded it."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nothing_but_what_trains_imports_torch() -> None:
    """It would make every command slower by seconds, and fail where torch is missing."""
    assert run(f"{EVERYTHING_ELSE}\nimport sys; print('torch' in sys.modules)") == "False"


def test_without_torch_one_line_says_how_to_get_it() -> None:
    hidden = "import sys; sys.modules['torch'] = None"
    asked = "try:\n    import onnx_cbq.torch_graph\nexcept onnx_cbq.ConfigError as error:\n    print(error)"
    expected = "training needs torch, which is not installed; install it with pip install 'onnx-cbq[torch]'"
    assert run(f"{hidden}\n{EVERYTHING_ELSE}\n{asked}") == expected
