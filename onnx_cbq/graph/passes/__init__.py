"""Rewrites that keep the outputs.

Each pass is one function `(model, example) -> model`; the same object back means that nothing was changed.
"""
