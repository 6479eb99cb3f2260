"""The embedded default: a grammar, the model trained on it, and what to measure it with."""
