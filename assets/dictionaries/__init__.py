"""Stage 2: a dictionary for each submodule, trained or imported, and the measured set of them."""
