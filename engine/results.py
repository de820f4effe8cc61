"""Places of results: the newest result has the plain name, earlier ones of other questions are kept beside it.

    samples/adams-14/           by --seed 4
    samples/adams-14-seed-3/    by --seed 3, which was there before

A command writes its files into a temporary folder of its own. When they are whole they get their names, under a lock:
so the files of a result are all of one command, whatever else runs in the folder.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

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
"""All that a result depends on, as flat JSON values under the key ``asked`` of its record."""

WITHOUT_EFFECT = ("batch_size",)
"""Last parts of keys that change no result."""

SHOWN, LONGEST = 3, 48
"""Most differences in a name, and most letters."""


def question(
    config: ConfigDict, sections: Sequence[str], options: Options, found: Path | None = None, **more: Any
) -> dict[str, Any]:
    """What a command asks for: seed, weights, checkpoint and split, then sections of the config, and more values.

    Args:
        found: the checkpoint, if the result depends on one.
        more: values that are not in the config, or that replace one; dots of keys are written as two underscores.
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
    config: ConfigDict, options: Options, asked: Asked, seconds: float, found: Path | None = None
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
    """A temporary folder whose files get their places in the folder ``target`` at the end.

    Args:
        record: name of the JSON file that holds ``asked``.
    """
    with _temporary(target) as partial:
        yield partial
        with exclusive(target.parent):
            _set_aside([target], target / record, asked)
            _move(partial, make_folder(target), record)


@contextmanager
def result_files(folder: Path, names: Sequence[str], asked: Asked) -> Iterator[Path]:
    """A temporary folder whose files get their places in ``folder`` at the end.

    Args:
        names: of all files of the result; the first is the JSON file that holds ``asked``.
    """
    with _temporary(folder / names[0]) as partial:
        yield partial
        with exclusive(folder):
            _set_aside([folder / name for name in names], folder / names[0], asked)
            _move(partial, folder, names[0])


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target``; a command that fails leaves no new folder behind."""
    new = not target.parent.exists()
    try:
        with replacing_folder(target) as partial:
            yield partial
    except BaseException:
        if new:
            remove_if_empty(target.parent)
        raise


def _move(partial: Path, target: Path, record: str) -> None:
    """Give the files of a temporary folder their places, the record last."""
    for path in sorted(partial.iterdir(), key=lambda path: path.name == record):
        rename(path, target / path.name)
    flush_folder(target)


def _set_aside(paths: Sequence[Path], record: Path, asked: Asked) -> None:
    """Rename an earlier result that answers another question, and say so."""
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
    say(f"kept the earlier {paths[0].name}, of another question, as {_named(paths[0], suffix).name}")


def _free_suffix(path: Path, record: Path, earlier: Asked | None, words: str) -> str:
    """A suffix whose name is free, or that of a result of the same question."""
    for number in itertools.count(1):
        suffix = f"-{words}" if number == 1 else f"-{words}-{number}"
        named = _named(path, suffix)
        if not named.exists() or (earlier and _asked(named if record == path else named / record.name) == earlier):
            return suffix
    raise AssertionError("there is no end of numbers")


def _words(changes: Asked) -> str:
    """What tells an earlier result apart, as a part of a name: seed-3, or label-none-scale-2."""
    words = [f"{key.rpartition('.')[2]}-{'none' if value in ('', None) else value}" for key, value in changes.items()]
    name = "-".join(words[:SHOWN]) or "earlier"
    return re.sub(r"[^A-Za-z0-9.,_+-]+", "_", name)[:LONGEST]


def _named(path: Path, suffix: str) -> Path:
    """The path with a suffix before its extension, if it is a file."""
    stem, extension = (path.stem, path.suffix) if path.suffix in (".json", ".npz", ".png") else (path.name, "")
    return path.with_name(f"{stem}{suffix}{extension}")


def _asked(record: Path) -> Asked | None:
    """What a result answers; None for one of an earlier version, or a damaged record."""
    try:
        values = json.loads(read_text(record))
    except (OSError, ValueError, RecursionError):
        return None
    found = values.get("asked") if isinstance(values, dict) else None
    return found if isinstance(found, dict) else None
