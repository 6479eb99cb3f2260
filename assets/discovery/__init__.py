"""Stages 3 and 4: tokens worth explaining, and groups of them."""
