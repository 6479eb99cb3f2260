"""A circuit as a picture (`core.pictures.draw`) and as text (`core.pictures.describe`).

selection                                what is shown when not all of it can be
layout <- columns, ordering, routes      where everything stands, in pixels
draw <- legend, svg, colours             the picture
describe                                 a table and sentences
text, wording                            widths of words, and the words themselves
"""
