"""Nested subnets that build on each other (Sun et al., SteppingNet, DATE 2023, arXiv 2211.14926), without torch.

`units.py` finds what can be given to a subnet, `assignment.py` counts what subnets cost and moves units, `masks.py` is
the whole net with the weights of a subnet, `emit.py` writes one model per step, `record.py` is `stepping.json`, and
`session.py` runs the steps. Training is in `onnx_cbq.training.nested`.
"""
