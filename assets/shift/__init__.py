"""A classifier that goes by the wrong thing, and what SHIFT makes of it (section 4)."""
