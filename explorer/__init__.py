"""A local web application over an experiment's tables: `python -m explorer`.

reader <- profiles                 an experiment's tables as pages need them, kept until they change
texts                              tokens and contexts as text that is harmless wherever shown
annotations <- ratings             what people say of features: append-only, and summed up
pictures                           a circuit as a picture, figures as curves
guard <- pages <- app              requests that are answered, and their answers
exchange <- export                 files to give away

It reads tables and writes nothing but annotations.
"""
