"""Stage 7: everything an experiment found as one page to read, print or send."""
