"""Searches for widths, thresholds and steps: pure functions of arrays, which `methods` hand what to search in."""
