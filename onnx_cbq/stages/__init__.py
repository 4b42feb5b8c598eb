"""What methods and goals call: a scene of everything gathered, samples, grids of activations, rounding, solutions."""
