"""Readers of other programs' adapter files: one file a dialect, which is a way to name the layers of a model."""

from .dialect import DIALECTS, Dialect

__all__ = ["DIALECTS", "Dialect"]
