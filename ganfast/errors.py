"""Errors name the thing, what was wrong with it, and what would be right.

Each is a :class:`Error` and the built-in that matches, so that ``except ValueError`` in a training script and
``except ganfast.Error`` in a launcher both work.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class Error(Exception):
    """Anything that ganfast refuses or gives up on."""


class InvalidValue(Error, ValueError):
    """A value is outside what the function accepts."""


class InvalidType(Error, TypeError):
    """An object is of a kind that the function does not accept."""


class InvalidData(Error, ValueError):
    """A data set is missing, unreadable, or does not fit what it claims to be."""


class NotFound(Error, FileNotFoundError):
    """A file or folder that was asked for does not exist."""


class NotWritable(Error, OSError):
    """A place to write to cannot be written."""


class Damaged(Error, ValueError):
    """A file exists and fails its checksum or its format."""


class NonFinite(Error, FloatingPointError):
    """Training produced NaN or Inf and could not recover."""


class Unavailable(Error, RuntimeError):
    """A backend or an optional package that was asked for is not there."""


def near(name: str, known: Iterable[str]) -> str:
    """``'; did you mean 'dcgan'?'`` where something in ``known`` is close to ``name``, otherwise what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def whole(value: Any, name: str, *, least: int = 1) -> int:
    """``value`` as an int. Raises InvalidType for what is no integer, InvalidValue for one below ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidType(f"{name}: expected an integer, got {value!r}") from None
    if number < least:
        raise InvalidValue(f"{name}: expected at least {least}, got {number}")
    return number


@contextmanager
def in_memory(needed: str) -> Iterator[None]:
    """Where memory runs out, one line that says for what and what would help."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = "out of memory|can't allocate memory|size calculation overflowed"  # by torch, whose CPU half has no class for it
        if not isinstance(error, MemoryError) and not re.search(said, str(error)):
            raise
        raise InvalidValue(f"out of memory {needed}") from error
