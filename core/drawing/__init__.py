"""How a circuit becomes a picture: selection, layout, routes, elements. Used by `core.draw`."""
