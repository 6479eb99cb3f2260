"""Every table of the pipeline, and the conversions between tables and core."""
