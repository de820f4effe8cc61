"""From names, files and overrides to one ConfigDict with the keys and types of configs/default.py."""

import ast
import json
import runpy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from score_sde.configs import RECIPES, choices, default
from score_sde.engine import paths
from score_sde.engine.errors import CheckpointError, looked_at
from score_sde.engine.ranges import check_range
from score_sde.engine.recipe import digest, flat, undone
from score_sde.engine.recovery import kept_config
from score_sde.storage.naming import listed, unknown
from score_sde.storage.reading import read_text

ABOUT = ("versions", "command", "changes", "signature")
"""Further keys of config.json; see ``Run``."""

MOST_CHANGES = 100
"""Most changes that a config.json records."""

WRONG = (AttributeError, ImportError, LookupError, OverflowError, RecursionError, SyntaxError, TypeError, ValueError)
"""Errors of files that are no configs."""


@dataclass(frozen=True)
class Options:
    """The flags that set no key of the config: weights, examples and further choices.

    Args:
        weights: ``ema`` or ``raw``.
        split: ``train`` or ``test``; None leaves the choice to the mode.
        checkpoint: step or folder; None is the newest.
        dtype: ``float32`` or ``float64``, of the selftest.
        task: as --task names it, of the mode edit; it sets ``edit.task``, too.
        log_prob: whether samples come with their log-densities.
        source: of the mode import, file or folder of somebody else's weights.
        format: of the mode export, a key of ``engine.modes.export.FORMATS``.
        overrides: (key, text) pairs for the config that the mode import finds in the source.
        allow_changes: whether a run may go on, or be used, with other values than it was trained with.
        changes: key -> (value of the run, value of this command), for manifests.
        command: words that name the user's own config file again, such as --config=mine.py; empty for other configs.
    """

    weights: str = "ema"
    split: str | None = None
    checkpoint: str | None = None
    dtype: str = "float32"
    task: str | None = None
    log_prob: bool = False
    source: str | None = None
    format: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    allow_changes: bool = False
    changes: Mapping[str, tuple] = field(default_factory=dict)
    command: tuple[str, ...] = ()


def names() -> list[str]:
    """The short names that --config takes: the recipes of configs/."""
    return sorted(RECIPES)


def load(name_or_path: str) -> ConfigDict:
    """The config of a short name, of a .py file with a RECIPE or a get_config(), or of the .json of a run.

    Keys that the file leaves out take the values of configs/default.py.

    Raises: ValueError for an unknown name, a missing file, a misspelt key or a value of the wrong type.
    """
    path = Path(name_or_path)
    if path.suffix not in (".py", ".json"):
        if name_or_path not in RECIPES:
            raise unknown("config", name_or_path, names())
        return recipe(RECIPES[name_or_path])
    if not path.is_file():
        raise ValueError(f"no config file {name_or_path}; known names: {listed(names())}; looked at {path.absolute()}")
    try:
        if path.suffix == ".json":
            return from_json(read_text(path))
        found = runpy.run_path(str(path))
        return recipe(found["RECIPE"]) if "RECIPE" in found else conform(found["get_config"]().to_dict())
    except WRONG as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error


def recipe(changes: Mapping[str, Any]) -> ConfigDict:
    """The config of a recipe: its changes to the config ``base``, or to configs/default.py.

    Raises: ValueError as ``load`` and ``override``.
    """
    rest = dict(changes)
    base = rest.pop("base", None)
    config = load(base) if base else default.get_config()
    change(config, rest.items())
    return config


# --- runs -------------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Contents of the config.json of a run.

    file: the path of config.json, absolute.
    config: the config of the training, with absolute paths.
    own: whether the user's own command wrote its paths; see ``engine.paths``.
    command: the words that name the user's own config file, to be shown; nothing runs that file by itself.
    changes: key -> (old value, new value) of each change that --allow_changes let through, oldest first.
    former: the configs before each of them, newest first.
    """

    file: Path
    config: ConfigDict
    own: bool = False
    command: tuple[str, ...] = ()
    changes: tuple[Mapping[str, Sequence], ...] = ()
    former: tuple[ConfigDict, ...] = ()

    def check_digest(self, written: str | None, sections: Sequence[str], found: Path) -> None:
        """Raises: CheckpointError if the checkpoint ``found`` was trained with another recipe than config.json has.

        Args:
            written: the digest of ``sections`` in the checkpoint; None in one of before there were digests.
        """
        if written not in {None, *(digest(config, sections) for config in (self.config, *self.former))}:
            raise CheckpointError(
                f"{self.file} is not the config of {found.name}: it was edited, or belongs to another run; "
                "restore it, or add --allow_changes"
            )


def read_run(folder: Path) -> Run:
    """The run in a folder, also where its config.json is lost and a checkpoint kept it; nothing is written.

    Raises: CheckpointError if there is none, or its config.json is damaged.
    """
    path, kept = folder / "config.json", kept_config(folder)
    if not kept and not path.is_file():
        name = folder.name if folder.name in names() else "NAME"
        raise CheckpointError(
            f"no run in {folder}: {path} is missing{looked_at(path)}; train one with --config {name} --mode train"
        )
    try:
        return parse_run(path, kept[0] if kept else read_text(path))
    except WRONG as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it or choose another --workdir") from error


def parse_run(path: Path, text: str) -> Run:
    """The run that the text of a config.json describes. Raises: one of ``WRONG``."""
    values, config = json.loads(text), from_json(text)
    command, changes = tuple(values.get("command", ())), tuple(values.get("changes", ()))
    if not all(isinstance(word, str) for word in command) or len(changes) > MOST_CHANGES:
        raise ValueError(f"command is no list of words, or there are more than {MOST_CHANGES} changes")
    paths.make_absolute(config, path.absolute().parent)
    own = paths.is_own(config, command, values.get("signature"))
    former = tuple(conform(before) for before in undone(config, changes))
    return Run(path.absolute(), config, own, command, changes, former)


def stored(folder: Path) -> ConfigDict:
    """The config that a run was trained with. Raises: CheckpointError as ``read_run``."""
    return read_run(folder).config


def run_json(
    config: ConfigDict, versions: Mapping[str, str], command: Sequence[str] = (), changes: Sequence[Mapping] = ()
) -> str:
    """The text of a run's config.json, signed as the user's own; see ``Run`` for the arguments."""
    about = {"versions": dict(versions), "command": list(command), "changes": list(changes)}
    about["signature"] = paths.signature(config, command)
    return json.dumps({**config.to_dict(), **about}, indent=2) + "\n"


# --- values -----------------------------------------------------------------------------------------------------------


def override(config: ConfigDict, changes: Sequence[tuple[str, str]]) -> None:
    """Set keys from the text of the command line, in place.

    Another entry of a table, ``sde`` or ``sde.name``, brings the defaults of its options.

    Args:
        changes: (dotted key, text) pairs; names of entries take effect before their options.
    Raises: ValueError for a misspelt key, naming the nearest ones, a text that is not of the key's type, or a value out
        of the key's range.
    """
    change(config, changes, literal)


def change(
    config: ConfigDict, changes: Iterable[tuple[str, Any]], read: Callable[[Any, Any], Any] = lambda value, like: value
) -> None:
    """Set keys in place, names of entries before their options.

    Args:
        changes: (dotted key, value) pairs.
        read: (value, present value of the key) -> value to set.
    Raises: ValueError as ``override``.
    """
    options = []
    for key, value in changes:
        section = key.removesuffix(".name")
        if section not in choices.TABLES:
            options.append((key, value))
        elif value != _at(config, section).name:
            if value not in choices.table(section):
                raise unknown(section.rpartition(".")[2].replace("_", " "), value, choices.table(section))
            _replace(config, section, choices.choose(section, value))
    for key, value in options:
        assign(config, key, read(value, flat(config.to_dict()).get(key)))


def conform(values: Mapping) -> ConfigDict:
    """A locked config with the given values, and the defaults of configs/default.py for all others.

    An entry that is in no table keeps the options that it comes with: the author's config file registers it.
    """
    config, given = default.get_config(), flat(values)
    for section in choices.TABLES:
        name = given.get(f"{section}.name", _at(config, section).name)
        if not isinstance(name, str):
            raise ValueError(f"{section}.name {name!r} is no name")
        if name in choices.table(section):
            _replace(config, section, choices.choose(section, name))
        else:
            kept = {
                key.removeprefix(f"{section}."): value for key, value in given.items() if key.startswith(f"{section}.")
            }
            _replace(config, section, ConfigDict({**kept, "name": name}))
    for key, value in given.items():
        assign(config, key, value)
    return config


def _at(config: ConfigDict, section: str) -> ConfigDict:
    return reduce(lambda part, name: part[name], filter(None, section.split(".")), config)


def _replace(config: ConfigDict, section: str, choice: ConfigDict) -> None:
    *outer, last = section.split(".")
    _at(config, ".".join(outer))[last] = choice.lock()


def to_json(config: ConfigDict, versions: Mapping[str, str] | None = None) -> str:
    """The text of config.json: the config, and the versions of the software under the key ``versions``."""
    return json.dumps({**config.to_dict(), **({"versions": dict(versions)} if versions else {})}, indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """The config of a text of ``to_json``, without loss: from_json(to_json(config)) == config, tuples included."""
    values = json.loads(text)
    for key in ABOUT:
        values.pop(key, None)
    return conform(values)


def assign(config: ConfigDict, key: str, value: object) -> None:
    """Set one dotted key that is there already to a value of the type that it has, within its range."""
    *sections, last = key.split(".")
    section = reduce(lambda part, name: part.get(name) if isinstance(part, ConfigDict) else None, sections, config)
    like = section.get(last) if isinstance(section, ConfigDict) else None
    if isinstance(section, ConfigDict) and like is None and ".".join(sections) in choices.TABLES:
        raise _unknown_option(".".join(sections), section, last)
    if like is None or isinstance(like, ConfigDict):
        known = [name.removesuffix(".name") if name[:-5] in choices.TABLES else name for name in flat(config.to_dict())]
        raise unknown("config key", key, [name for name in known if name.startswith(f"{key}.")] or known)
    try:
        section[last] = typed(value, like)
    except (TypeError, OverflowError):  # an int may be too large for a float
        kind = "true or false" if isinstance(like, bool) else type(like).__name__
        raise ValueError(f"config key {key} takes {kind}, such as {like!r}, not {value!r}") from None
    check_range(key, section[last], section.get("name"))


def _unknown_option(section: str, chosen: ConfigDict, option: str) -> ValueError:
    """The error for an option that the chosen entry lacks, with its options and the entries that have this one."""
    own = ", ".join(key for key in sorted(chosen) if key != "name") or "none"
    others = [name for name in choices.table(section) if option in choices.defaults(section, name)]
    hint = f"; {listed(others)} {'has' if len(others) == 1 else 'have'} it" if others else ""
    return ValueError(f"{section} {chosen.name!r} has no option {option!r}, its options: {own}{hint}")


def literal(text: str, like: object) -> object:
    """The value that a text of the command line stands for, where a value like ``like`` is expected."""
    if isinstance(like, str):
        return text
    try:
        return ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # all else is a text
        return text


def typed(value: object, like: object) -> object:
    """``value`` in the type of ``like``: an int may stand for a float, a list for a tuple, a bool for its text.

    A tuple that is empty by default takes numbers; a key that takes true and false may take other words, too.
    """
    if isinstance(like, tuple) and isinstance(value, (list, tuple)):
        return tuple(typed(item, like[0] if like else 0.0 if type(item) is float else 0) for item in value)
    if type(like) is float and type(value) is int:
        return float(value)
    if type(like) is str and type(value) is bool:
        return str(value).lower()
    if type(value) is not type(like):
        raise TypeError
    return value
