"""Names: file names as printable text, keys of tables, and names of arguments."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

MOST_LISTED, SHOWN = 16, 8
"""Largest number of names that a message lists completely, and the number it shows of a longer list."""


def printable(text: str) -> str:
    """Escapes newlines, other control characters and escape sequences as Python does, so that the text is one line.

    File names may contain any of them, and bytes that are not text.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def pick(table: Mapping[str, Any], what: str, name: str) -> Any:
    """The entry of a table.

    Raises: UnknownName with similar names, or else the known ones.
    """
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


def options(of: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values whose names are parameters of ``of``."""
    return {name: values[name] for name in inspect.signature(of).parameters if name in values}


class UnknownName(ValueError):
    """A name that is not in its table.

    Args:
        message: the error message.
        name: the unknown name.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def unknown(what: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for an unknown name, with similar names, or else the first known ones and a count.

    Example: unknown("mode", "trian", MODES) has the message: unknown mode 'trian'; did you mean 'train'?
    """
    known = sorted(known)
    close = near(name, known)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {listed(known)}"
    return UnknownName(f"unknown {what} {name!r}; {hint}", name)


def near(name: str, known: Sequence[str]) -> list[str]:
    """The known names similar to ``name``; for dotted keys, the keys with the same last part if any exist."""
    last = name.rpartition(".")[2]
    alike = [key for key in known if "." in key and key.rpartition(".")[2] == last]
    return alike[:SHOWN] or difflib.get_close_matches(name, known, n=3, cutoff=0.7)


def listed(names: Sequence[str], between: str = ", ") -> str:
    """The names in one line; a long list shows the first names that extend no other name, and the number of the rest.

    Example: cifar10, classifier, clip, ... and 37 more; cifar10_ncsn extends cifar10.
    """
    if len(names) <= MOST_LISTED:
        return between.join(names)
    heads = [name for name in names if not any(name.startswith(f"{other}_") for other in names)][:SHOWN]
    return f"{between.join(heads)} and {len(names) - len(heads)} more"
