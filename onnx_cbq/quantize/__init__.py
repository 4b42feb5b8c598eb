"""From a plan and statistics to integer weights and activation ranges: pure functions of arrays."""
