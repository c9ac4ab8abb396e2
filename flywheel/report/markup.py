"""Markup that nothing breaks out of: every text and every attribute is escaped where it is put in."""

from __future__ import annotations

import html
from collections.abc import Mapping

Value = str | int | float | None
_VOID = frozenset({"br", "link", "meta"})


class Markup(str):
    """What is markup already; any other text is only ever text."""

    __slots__ = ()


def tag(name: str, attributes: Mapping[str, Value] | None = None, /, *children: str | None) -> Markup:
    """Return an element; an attribute of None and a child of None are left out."""
    given = "".join(f' {key}="{_text(str(value))}"' for key, value in (attributes or {}).items() if value is not None)
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(*children)}</{name}>")


def join(*children: str | None) -> Markup:
    """Return children one after another, as markup."""
    return Markup("".join(child if isinstance(child, Markup) else _text(child) for child in children if child))


def _text(text: str) -> str:
    """Return any text as it may stand in a page: half of a surrogate pair can't be written to a file."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))
