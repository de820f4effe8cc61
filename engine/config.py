"""From names, files and overrides to one ConfigDict whose keys and types are those of configs/default.py."""

import ast
import json
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from ml_collections import ConfigDict

from configs import default
from engine.errors import CheckpointError, unknown
from engine.ranges import check_range
from engine.recovery import restore_config
from storage.reading import read_text

FOLDER = Path(default.__file__).parent

MODEL = ("data", "codec", "sde", "network", "denoiser", "loss.name")
"""Sections and keys that define what was trained: every later mode must agree with them."""

RECIPE = ("seed", *MODEL, "loss", "optim", "ema", "train")
"""What a run that goes on must agree with, apart from ``FREE``."""

FREE = (
    {"data.max_pixels"}
    | {f"train.{key}" for key in ("total_images", "keep_checkpoints", "keep_every", "max_skipped")}
    | {f"train.{key}" for key in ("microbatch", "recompute", "compile", "sharding")}
    | {f"train.{what}_every" for what in ("checkpoint", "log", "sample", "evaluate")}
)
"""Keys that may change when a run goes on."""

RENAMED = {"denoiser": {"label": "c_noise"}}
"""Keys of runs that were written under an earlier name, by section."""

FORMERLY = {"loss": {"time_tail": 0.0}}
"""What runs did that were written before there was such a key, where that is not the default."""

WRONG = (AttributeError, ImportError, LookupError, OverflowError, RecursionError, SyntaxError, TypeError, ValueError)
"""What a config file that is not one raises."""


@dataclass(frozen=True)
class Options:
    """The flags that are no keys of the config: which weights to take, which examples, and what to do with them.

    Args:
        weights: ``ema`` or ``raw``.
        split: ``train`` or ``test``; None leaves the choice to the mode.
        checkpoint: step or folder; None is the newest.
        dtype: ``float32`` or ``float64``, of the selftest.
        task: a key of ``engine.edit.TASKS``, of the mode edit.
        log_prob: whether samples come with their log-densities.
        source: of the mode import, file or folder of somebody else's weights.
        format: of the mode export, a key of ``engine.exporting.FORMATS``.
        overrides: (key, text) pairs for the config that the mode import finds in the source.
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


def names() -> list[str]:
    """The short names that --config takes: the files of configs/."""
    return sorted(path.stem for path in FOLDER.glob("[!_]*.py"))


def load(name_or_path: str) -> ConfigDict:
    """The config of a short name, of a .py file with a get_config(), or of the .json of a run.

    Keys that the file leaves out take the values of configs/default.py.

    Raises: ValueError for an unknown name, a missing file, a misspelt key or a value of the wrong type.
    """
    path = Path(name_or_path)
    if path.suffix not in (".py", ".json"):
        if name_or_path not in names():
            raise unknown("config", name_or_path, names())
        path = FOLDER / f"{name_or_path}.py"
    if not path.is_file():
        raise ValueError(f"no config file {name_or_path}; known names: {', '.join(names())}")
    try:
        if path.suffix == ".json":
            return from_json(read_text(path))
        return conform(runpy.run_path(str(path))["get_config"]().to_dict())
    except WRONG as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error


def resolve(
    name: str | None, workdir: str | None, changes: Sequence[tuple[str, str]], mode: str
) -> tuple[ConfigDict, Path]:
    """The config and the folder of a command.

    The folder alone gives the config that it was trained with. A config that is given must agree with it: in ``MODEL``,
    and for the mode train in all of ``RECIPE``.

    Args:
        name: of --config, as ``load`` takes it.
        workdir: of --workdir; None is runs/<name of the config>.
        changes: (key, text) of each override.
        mode: of --mode.
    Raises: ValueError where they disagree; CheckpointError where the folder holds no run, or a damaged one.
    """
    if name is None and workdir is None:
        raise ValueError(f"give --config ({' | '.join(names())}) or the --workdir of a run")
    folder = Path(workdir) if workdir else Path("runs") / run_name(name)
    restore_config(folder)
    config = stored(folder) if name is None else load(name)
    override(config, changes)
    if name is not None and (folder / "config.json").exists():
        check_agreement(folder, stored(folder), config, RECIPE if mode == "train" else MODEL)
    return config, folder


def run_name(config: str) -> str:
    """The folder below runs/: the name of the config, which for the config.json of a run is that of its folder."""
    path = Path(config)
    return path.absolute().parent.name if path.name == "config.json" else path.stem


def stored(folder: Path) -> ConfigDict:
    """The config that a run was trained with."""
    restore_config(folder)
    path = folder / "config.json"
    if not path.is_file():
        name = folder.name if folder.name in names() else "NAME"
        raise CheckpointError(f"no run in {folder}: {path} is missing; train one with --config {name} --mode train")
    try:
        return from_json(read_text(path))
    except WRONG as error:
        raise CheckpointError(f"{path} is damaged ({error}); restore it or choose another --workdir") from error


def check_agreement(folder: Path, trained: ConfigDict, given: ConfigDict, sections: Sequence[str]) -> None:
    """Refuse a config that says other things about the run in ``folder`` than the one that it was trained with."""
    found = [
        f"{key} is {old!r} there and {new!r} here"
        for key, (old, new) in differences(trained, given, sections).items()
        if key not in FREE
    ]
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        raise ValueError(
            f"the run in {folder} has another config: {'; '.join(found[:3])}{more}; "
            f"leave --config out to take that of the run, or choose another --workdir"
        )


def differences(trained: ConfigDict, given: ConfigDict, sections: Sequence[str]) -> dict[str, tuple]:
    """The keys of ``sections`` whose values differ, with both values; None where one of them has no such key."""

    def part(config: ConfigDict) -> dict[str, object]:
        values = flat(config.to_dict())
        return {key: values[key] for s in sections for key in values if f"{key}.".startswith(f"{s}.")}

    old, new = part(trained), part(given)
    return {key: (old.get(key), new.get(key)) for key in old | new if old.get(key) != new.get(key)}


def override(config: ConfigDict, changes: Sequence[tuple[str, str]]) -> None:
    """Set keys from the text of the command line, in place; another name of an SDE or network brings its options.

    Args:
        changes: (dotted key, text) pairs; names take effect before the other keys.
    Raises: ValueError for a misspelt key, which names the near one, a text that is not of the key's type, or a value
        that is out of the key's range.
    """
    for key, text in sorted(changes, key=lambda change: not change[0].endswith(".name")):
        section = key.removesuffix(".name")
        if section in default.CHOICES and key.endswith(".name") and text != config[section].name:
            if text not in default.CHOICES[section]:
                raise unknown(key, text, default.CHOICES[section])
            config[section] = default.choose(section, text).lock()
        else:
            assign(config, key, literal(text, flat(config.to_dict()).get(key)))


def conform(values: Mapping) -> ConfigDict:
    """A locked config with the given values, and those of configs/default.py where they say nothing.

    A name that ``default.CHOICES`` does not hold keeps the options that it comes with: it is somebody's own.
    """
    config = default.get_config()
    for section, choices in default.CHOICES.items():
        given = values.get(section, {})
        name = given.get("name", config[section].name)
        if not isinstance(name, str):
            raise ValueError(f"{section}.name {name!r} is no name")
        config[section] = ConfigDict({**choices.get(name, given), "name": name}).lock()
    for key, value in flat(values).items():
        assign(config, key, value)
    return config


def to_json(config: ConfigDict, versions: Mapping[str, str] | None = None) -> str:
    """The text of config.json: the config, and the versions of the software under the key ``versions``."""
    return json.dumps({**config.to_dict(), **({"versions": dict(versions)} if versions else {})}, indent=2) + "\n"


def from_json(text: str) -> ConfigDict:
    """The config of a text of ``to_json``, without loss: from_json(to_json(config)) == config, tuples included."""
    values = json.loads(text)
    values.pop("versions", None)
    for section, formerly in FORMERLY.items():
        values[section] = {**formerly, **values.get(section, {})}
    for section, names in RENAMED.items():
        given = values.get(section, {})
        values[section] = {names.get(key, key): value for key, value in given.items()}
    return conform(values)


def flat(values: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested keys as dotted ones: {"train": {"compile": False}} is {"train.compile": False}."""
    items = {}
    for key, value in values.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return items


def assign(config: ConfigDict, key: str, value: object) -> None:
    """Set one dotted key that is there already to a value of the type that it has, within its range."""
    *sections, last = key.split(".")
    section = reduce(lambda part, name: part.get(name) if isinstance(part, ConfigDict) else None, sections, config)
    like = section.get(last) if isinstance(section, ConfigDict) else None
    if like is None or isinstance(like, ConfigDict):
        known = flat(config.to_dict())
        raise unknown("config key", key, [name for name in known if name.startswith(f"{key}.")] or known)
    try:
        section[last] = typed(value, like)
    except (TypeError, OverflowError):  # an int may be too large for a float
        kind = "true or false" if isinstance(like, bool) else type(like).__name__
        raise ValueError(f"config key {key} takes {kind}, such as {like!r}, not {value!r}") from None
    check_range(key, section[last], section.get("name"))


def literal(text: str, like: object) -> object:
    """The value that a text of the command line stands for, where a value like ``like`` is expected."""
    if isinstance(like, str):
        return text
    try:
        return ast.literal_eval(text.capitalize() if text in ("true", "false") else text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):  # what Python cannot read is a text
        return text


def typed(value: object, like: object) -> object:
    """``value`` in the type of ``like``: an int may stand for a float, a list for a tuple, a bool for its text.

    A tuple that is empty by default is one of numbers; what takes true and false may take other words, too.
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
