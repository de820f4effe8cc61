"""Resolved configs: frozen sections, whose keys are typed attributes and items of a mapping."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar


class Section(Mapping[str, Any]):
    """A frozen section of a config, the whole config included."""

    def __getitem__(self, key: str) -> Any:
        if key not in iter(self):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return (each.name for each in fields(self))  # type: ignore[arg-type]  # each section is a dataclass

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def to_dict(self) -> dict[str, Any]:
        """The keys and values, of inner sections as dicts."""
        return {key: value.to_dict() if isinstance(value, Section) else value for key, value in self.items()}


@dataclass(frozen=True)
class Choice(Section):
    """A section that names an entry of a table, and holds the options of that entry.

    Args:
        name: of the entry.
        options: their names and values; attributes and items of the section, too.
    """

    name: str
    options: Mapping[str, Any]

    def __getattr__(self, key: str) -> Any:
        if key == "options" or key not in self.options:  # copies look for attributes before there are options
            raise AttributeError(f"there is no option {key!r}")
        return self.options[key]

    def __iter__(self) -> Iterator[str]:
        return iter(("name", *self.options))


S = TypeVar("S", bound=Section)


def frozen(of: type[S], values: Mapping[str, Any]) -> S:
    """The section of this type with the values of a nested mapping, such as a ``ConfigDict``."""
    found: dict[str, Any] = {}
    for each in fields(of):  # type: ignore[arg-type]
        value = values[each.name]
        if each.type is Choice:
            options = dict(value)
            value = Choice(options.pop("name"), options)
        elif is_dataclass(each.type):
            inner: Any = each.type
            value = frozen(inner, value)
        found[each.name] = value
    return of(**found)
