"""From integer weights to an ONNX model.

To add a storage format, write its nodes here beside `qdq.py` and `packed.py`, name it in `STORAGES`
(`config/checks.py`), and choose it in `emit_qdq`, which gets its name; verification then runs it like any other.
"""
