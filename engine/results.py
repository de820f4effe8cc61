"""Paths of results: the newest has the plain name, and earlier ones with other settings get a suffix.

    samples/adams-14/           the newest, with --seed 4
    samples/adams-14-seed-3/    an earlier one, with --seed 3

A command writes its files into a temporary folder. Complete files are moved to their paths under a lock, so all files
of a result are from one command, even if several run in the folder.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from score_sde.configs.default import Config
from score_sde.engine import checkpoint
from score_sde.engine.config import Options
from score_sde.engine.log import say, versions
from score_sde.engine.recipe import flat
from score_sde.storage.reading import read_text
from score_sde.storage.writing import (
    exclusive,
    flush_folder,
    make_folder,
    remove,
    remove_if_empty,
    rename,
    replacing_folder,
)

Asked = Mapping[str, Any]
"""All settings of a result, as flat JSON values; its record has them under the key ``asked``."""

WITHOUT_EFFECT = ("batch_size",)
"""Last parts of the keys that change no result."""

SHOWN, LONGEST = 3, 48
"""Largest number of differences in a name, and of its characters."""


def question(
    config: Config, sections: Sequence[str], options: Options, found: Path | None = None, **more: Any
) -> dict[str, Any]:
    """Returns the settings of a result: seed, weights, checkpoint, split, sections of the config, and more values.

    Args:
        found: the checkpoint, if the result depends on one.
        more: values outside the config, or in place of its values; keys have two underscores for a dot.
    """
    asked = {"seed": config.seed, "weights": options.weights, "split": options.split}
    if found:
        meta = checkpoint.read_meta(found)
        asked["checkpoint_step"] = meta["step"]
        more["checkpoint_sha256"] = hashlib.sha256(json.dumps(meta["sha256"], sort_keys=True).encode()).hexdigest()
    values = flat({section: config[section].to_dict() for section in sections})
    asked |= {key: value for key, value in values.items() if key.rpartition(".")[2] not in WITHOUT_EFFECT}
    asked |= {key.replace("__", "."): value for key, value in more.items()}
    asked |= {key: value for key, (_, value) in options.changes.items()}
    return json.loads(json.dumps(asked))


def result_record(
    config: Config, options: Options, asked: Asked, seconds: float, found: Path | None = None
) -> dict[str, Any]:
    """Fields common to the JSON records of all results; each mode adds its own.

    Args:
        asked: as returned by ``question``.
        seconds: duration of the command's work.
        found: folder of the checkpoint whose weights ``options`` name, if the result depends on them alone.
    """
    record = {
        "seed": config.seed,
        "asked": asked,
        "changes": options.changes,
        "seconds": seconds,
        "versions": versions(),
    }
    if found:
        record |= {"weights": options.weights, "checkpoint_step": checkpoint.read_meta(found)["step"]}
    return record


@contextmanager
def result_folder(target: Path, record: str, asked: Asked) -> Iterator[Path]:
    """Context of a temporary folder whose files move to the folder ``target`` at the end.

    Args:
        record: name of the JSON file with ``asked``.
    """
    with _temporary(target) as partial:
        yield partial
        with exclusive(target.parent):
            _set_aside([target], target / record, asked)
            _move(partial, make_folder(target), record)


@contextmanager
def result_files(folder: Path, names: Sequence[str], asked: Asked) -> Iterator[Path]:
    """Context of a temporary folder whose files move to ``folder`` at the end.

    Args:
        names: names of all files of the result; the first is the JSON file with ``asked``.
    """
    with _temporary(folder / names[0]) as partial:
        yield partial
        with exclusive(folder):
            _set_aside([folder / name for name in names], folder / names[0], asked)
            _move(partial, folder, names[0])


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """Context of a temporary folder next to ``target``; a command that fails leaves no new folder."""
    new = not target.parent.exists()
    try:
        with replacing_folder(target) as partial:
            yield partial
    except BaseException:
        if new:
            remove_if_empty(target.parent)
        raise


def _move(partial: Path, target: Path, record: str) -> None:
    """Moves the files of a temporary folder to ``target``, the record last."""
    for path in sorted(partial.iterdir(), key=lambda path: path.name == record):
        rename(path, target / path.name)
    flush_folder(target)


def _set_aside(paths: Sequence[Path], record: Path, asked: Asked) -> None:
    """Renames an earlier result with other settings and prints its new name."""
    if not record.is_file():
        return
    earlier = _asked(record)
    if earlier == asked:
        return
    changes = {key: value for key, value in (earlier or {}).items() if value != asked.get(key) and "sha256" not in key}
    suffix = _free_suffix(paths[0], record, earlier, _words(changes))
    for path in paths:
        if path.exists():
            remove(_named(path, suffix))
            rename(path, _named(path, suffix))
    say(f"kept the earlier {paths[0].name}, of other settings, as {_named(paths[0], suffix).name}")


def _free_suffix(path: Path, record: Path, earlier: Asked | None, words: str) -> str:
    """Returns a suffix whose path is free or has a result with the same settings."""
    for number in itertools.count(1):
        suffix = f"-{words}" if number == 1 else f"-{words}-{number}"
        named = _named(path, suffix)
        if not named.exists() or (earlier and _asked(named if record == path else named / record.name) == earlier):
            return suffix
    raise AssertionError("unreachable: the suffixes are endless")


def _words(changes: Asked) -> str:
    """Returns the differing settings of an earlier result for its name, such as seed-3 or label-none-scale-2."""
    words = [f"{key.rpartition('.')[2]}-{'none' if value in ('', None) else value}" for key, value in changes.items()]
    name = "-".join(words[:SHOWN]) or "earlier"
    return re.sub(r"[^A-Za-z0-9.,_+-]+", "_", name)[:LONGEST]


def _named(path: Path, suffix: str) -> Path:
    """Returns the path with a suffix, before the extension of a file."""
    stem, extension = (path.stem, path.suffix) if path.suffix in (".json", ".npz", ".png") else (path.name, "")
    return path.with_name(f"{stem}{suffix}{extension}")


def _asked(record: Path) -> Asked | None:
    """Returns the settings of a result; None for a result of an earlier version, or a damaged record."""
    try:
        values = json.loads(read_text(record))
    except (OSError, ValueError, RecursionError):
        return None
    found = values.get("asked") if isinstance(values, dict) else None
    return found if isinstance(found, dict) else None
