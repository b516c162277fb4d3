"""The built-in tasks of language: next words of a text by LSTMs, and translation by Transformers."""

from tombola.tasks.language.modelling import MODELLING
from tombola.tasks.language.translation import TRANSLATION

LANGUAGE = (*MODELLING, *TRANSLATION)

__all__ = ["LANGUAGE"]
