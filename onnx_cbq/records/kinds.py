"""What kinds of layers there are: how an operator uses a constant weight.

A *product* multiplies the rows of its weight with what it reads, once for every position; a runtime may do that on
integers, channels of 0 bits can be cut out, and a bias takes up what rounding shifts. A *recurrent* layer multiplies in
the same way, but what comes out stays inside of the node; a *table* is looked up, a row for every index. These two are
quantized in their weights alone, and rows of 0 bits stay, as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Kind = Literal["product", "recurrent", "table"]

# Operator -> how many gates each hidden unit has.
GATES: Mapping[str, int] = {"LSTM": 4, "GRU": 3, "RNN": 1}
TABLES = ("Gather",)


def kind_of(operator: str) -> Kind:
    """The kind of the layers of an operator."""
    if operator in GATES:
        return "recurrent"
    return "table" if operator in TABLES else "product"
