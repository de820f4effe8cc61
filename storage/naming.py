"""Names: of files as text for a terminal, of the entries of a table, and of arguments."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

MOST_LISTED, SHOWN = 16, 8
"""Names that a line lists whole, and how many it shows of more."""


def printable(text: str) -> str:
    """A text as one line: newlines, other control characters and escape sequences are escaped as Python writes them.

    Names of files may hold any of them, and bytes that are no text.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def pick(table: Mapping[str, Any], what: str, name: str) -> Any:
    """The entry of a table.

    Raises: ValueError naming the near names, or else all known ones.
    """
    if name not in table:
        raise unknown(what, name, table)
    return table[name]


def options(of: Callable, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that ``of`` takes, by name."""
    return {name: values[name] for name in inspect.signature(of).parameters if name in values}


class UnknownName(ValueError):
    """A name that is in no table.

    Args:
        name: that name.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def unknown(what: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that is in no table, with the names that are near, or else the first ones and a count.

    Example: unknown("mode", "trian", MODES) says: unknown mode 'trian'; did you mean 'train'?
    """
    known = sorted(known)
    close = near(name, known)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {listed(known)}"
    return UnknownName(f"unknown {what} {name!r}; {hint}", name)


def near(name: str, known: Sequence[str]) -> list[str]:
    """The known names near this one; of dotted keys those with the same last part, if there are any."""
    last = name.rpartition(".")[2]
    alike = [key for key in known if "." in key and key.rpartition(".")[2] == last]
    return alike[:SHOWN] or difflib.get_close_matches(name, known, n=3, cutoff=0.7)


def listed(names: Sequence[str], between: str = ", ") -> str:
    """The names in one line: all of a few; of many the first ones that extend no other, and a count of the rest.

    Example: cifar10, classifier, clip, ... and 37 more; cifar10_ncsn extends cifar10.
    """
    if len(names) <= MOST_LISTED:
        return between.join(names)
    heads = [name for name in names if not any(name.startswith(f"{other}_") for other in names)][:SHOWN]
    return f"{between.join(heads)} and {len(names) - len(heads)} more"
