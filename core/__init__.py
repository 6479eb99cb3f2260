"""Sparse feature circuits in plain torch: node effects, edges, circuits and their evaluation."""
