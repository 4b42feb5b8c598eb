"""From scores and sizes to a plan: pure functions of arrays; whatever is measured comes in as a function."""
