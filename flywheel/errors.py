"""Errors as sentences: what happened, why, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FlywheelError(Exception):
    """Something a person can put right; its message is one sentence or two, without a traceback's help."""


class UsageError(FlywheelError):
    """The call itself was wrong (an unknown name, a port in use): the command line ends with code 2."""


class Refused(FlywheelError):
    """A safety law said no (an unjudged policy, a broken digest): nothing was changed."""


class LostError(FlywheelError):
    """A process came back on another node, or after a crash, without the work that it held: begin that again."""


def unknown(what: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that is not among `known`, with the nearest one and the whole list."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UsageError(f"There is no {what} {name!r}.{hint} Known: {', '.join(names)}.")
