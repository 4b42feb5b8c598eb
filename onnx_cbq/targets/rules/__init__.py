"""Rules of the lint, by what they look at. What comes of a finding, and who says so, is in the target's `demands`."""
