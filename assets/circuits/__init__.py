"""Stage 5: behaviours, from clusters or pair files, and their circuits."""
