"""One stage of the pipeline per module: read tables, call `core`, write tables, report metadata."""
