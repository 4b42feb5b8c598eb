"""The backward graph: gradients as ordinary ONNX nodes, so that the ordinary onnxruntime wheel computes them.

`backward.py` walks the graph, one file per family of operators holds the rules, `rules.py` lists them all. To add an
operator, write a function `Site -> gradients` in the family's file and name it in that file's `RULES`; the contract
test then asks for a case.
"""
