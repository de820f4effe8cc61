"""The recipe of a run: which keys of a config it holds, which of them may change later, and how two recipes differ."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from score_sde.configs import choices, default

MODEL = ("data", "codec", "sde", "network", "denoiser", "loss.objective.name", "train.label_dropout")
"""Sections and keys that define the trained model: every later mode must agree with them."""

RECIPE = ("seed", *MODEL, "loss", "optim", "ema", "train")
"""Sections and keys that training must agree with when it goes on."""

FREE = (
    {"data.path", "data.test_path", "data.max_pixels", "data.skip_broken"}
    | {f"train.{key}" for key in ("total_images", "keep_checkpoints", "keep_every", "max_skipped")}
    | {f"train.{key}" for key in ("microbatch", "recompute", "compile", "sharding")}
    | {f"train.{event}_every" for event in ("checkpoint", "log", "sample", "evaluate")}
)
"""Keys that may change. Training checks by a fingerprint that the files of ``data`` hold the same examples."""


def flat(values: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested keys as dotted ones: {"train": {"compile": False}} is {"train.compile": False}."""
    items: dict[str, object] = {}
    for key, value in values.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return items


def nested(values: Mapping[str, object]) -> dict[str, object]:
    """Inverse of ``flat``."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        part = tree
        for section in sections:
            part = part.setdefault(section, {})
        part[last] = value
    return tree


def part(config: ConfigDict, sections: Sequence[str]) -> dict[str, object]:
    """The keys of these sections, dotted, with their values."""
    values = flat(config.to_dict())
    return {key: values[key] for section in sections for key in values if f"{key}.".startswith(f"{section}.")}


def differences(trained: ConfigDict, given: ConfigDict, sections: Sequence[str]) -> dict[str, tuple]:
    """The keys of ``sections`` whose values differ, with both values; None where one of them has no such key."""
    old, new = part(trained, sections), part(given, sections)
    return {key: (old.get(key), new.get(key)) for key in old | new if old.get(key) != new.get(key)}


def conflicts(trained: ConfigDict, given: ConfigDict, sections: Sequence[str]) -> dict[str, tuple]:
    """The differences that a mode refuses: those outside ``FREE``."""
    found = differences(trained, given, sections)
    return {key: values for key, values in found.items() if key not in FREE}


def undone(trained: ConfigDict, changes: Iterable[Mapping[str, Sequence]]) -> list[dict[str, object]]:
    """Nested values of the configs that a run had before its recorded changes, from the newest to the oldest.

    Args:
        changes: key -> (old value, new value) of each recorded change, oldest first; None: there was no such key.
    """
    values, found = flat(trained.to_dict()), []
    for change in reversed(list(changes)):
        for key, (old, _) in change.items():
            values.pop(key, None)
            if old is not None:
                values[key] = old
        found.append(nested(values))
    return found


def merged_values(trained: ConfigDict, given: ConfigDict, sections: Sequence[str]) -> dict[str, object]:
    """Nested values of ``given``, replaced by ``trained`` for the keys of ``sections`` outside ``FREE``."""
    ours, theirs = part(trained, sections), part(given, sections)
    kept = {key: value for key, value in flat(given.to_dict()).items() if key in FREE or key not in theirs}
    return nested(kept | {key: value for key, value in ours.items() if key not in FREE})


def digest(config: ConfigDict, sections: Sequence[str]) -> str:
    """SHA-256 of those values of ``sections`` outside ``FREE`` that are not the defaults of configs/default.py.

    Names of SDEs and networks always count. A key that a later version adds leaves the digest as it is.
    """
    usual, values = flat(default.get_config().to_dict()), flat(config.to_dict())
    for section in choices.TABLES:
        name = str(values[f"{section}.name"])
        usual = {key: value for key, value in usual.items() if not key.startswith(f"{section}.")}
        if choices.is_own(section, name):
            usual |= {f"{section}.{key}": value for key, value in choices.defaults(section, name).items()}
    kept = {key: value for key, value in part(config, sections).items() if key not in FREE and usual.get(key) != value}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
