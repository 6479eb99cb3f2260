"""Stage 1: text to contexts, contexts to activations on disk."""
