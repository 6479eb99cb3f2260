"""Stage 6: how much of a behaviour each circuit explains."""
