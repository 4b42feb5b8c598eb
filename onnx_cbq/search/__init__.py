"""From scores and sizes to a plan: pure functions of arrays; whatever is measured comes in as a function.

To add a method, write its search here, name it in `METHODS` (`config/checks.py`), say what it needs measured in
`planning.gather_evidence`, and call it from `planning.make_plan`.
"""
