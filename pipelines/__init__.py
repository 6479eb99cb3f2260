"""Experiments put together as Dagster definitions, and the commands that run them."""
