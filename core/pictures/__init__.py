"""A circuit as a picture (`core.pictures.draw`) and as text (`core.pictures.describe`)."""
