"""Stage 7: what features mean: cards, labels, and the circuits that hold them."""
