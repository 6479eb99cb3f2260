"""Every error `core` raises on bad input, so that a caller can tell them apart.

    CircuitError
    ├── ModelError            the model or tokenizer is not what its files say, or cannot be read
    │   ├── UnknownFamily     no adapter for this architecture
    │   └── AdapterMismatch   the adapter's layer does not reproduce the model's own logits
    ├── DictionaryError       a dictionary cannot be used where it was put
    │   ├── WidthMismatch     its width is not its submodule's
    │   ├── MissingSubmodule  the model has no such submodule, or no dictionary sits there
    │   └── FormatError       a file is not in the format it should be
    ├── InputError            the texts, answers or settings cannot be used
    │   ├── ShapeMismatch     clean and patch (or tokens and mask) differ in shape
    │   └── AnswerError       an answer is not exactly one known token
    ├── NotFinite             NaN or infinity where a number was needed
    └── OutOfBudget           the work cannot fit in the memory or disk it was given

Each message names what clashed, why it matters and the way out.
"""


class CircuitError(Exception):
    """Anything `core` refuses to do."""


class ModelError(CircuitError):
    """The model or tokenizer is not what its files say, or cannot be read where it must be."""


class UnknownFamily(ModelError):
    """No adapter describes this architecture."""


class AdapterMismatch(ModelError):
    """The adapter's layers do not reproduce the model's own logits."""


class DictionaryError(CircuitError):
    """A dictionary cannot be used where it was put."""


class WidthMismatch(DictionaryError):
    """The dictionary's width is not its submodule's."""


class MissingSubmodule(DictionaryError):
    """The model has no such submodule, or no dictionary sits there."""


class FormatError(DictionaryError):
    """A file is not in the format it should be."""


class InputError(CircuitError):
    """The texts, answers or settings cannot be used."""


class ShapeMismatch(InputError):
    """Clean and patch, or tokens and mask, differ in shape."""


class AnswerError(InputError):
    """An answer is not exactly one token that the tokenizer knows."""


class NotFinite(CircuitError):
    """NaN or infinity where a number was needed."""


class OutOfBudget(CircuitError):
    """The work cannot fit in the memory or disk it was given."""
