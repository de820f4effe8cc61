"""Which files a config may lead a command to: a stranger's run folder leads only inside itself (docs/security.md).

A config that the user's own training or import wrote carries a signature of its paths, made with a key of the user's
account. The paths of any other config.json count where they lie inside its folder or where the command names them.
"""

import hashlib
import hmac
import json
import os
import secrets
import shlex
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import reduce
from pathlib import Path

from ml_collections import ConfigDict

from score_sde.configs import default
from score_sde.engine.modes import MODES
from score_sde.storage.reading import read_bytes

FEATURES = ("identity", "inception")
"""Values of evaluate.features that are names, also where a folder is called so."""

PATHS: dict[str, Callable[[str], bool]] = {
    "data.path": bool,
    "data.test_path": bool,
    "loss.teacher": bool,
    "train.init": bool,
    "sample.grid": lambda text: text.endswith(".txt"),
    "guidance.classifier": bool,
    "guidance.autoguidance": bool,
    "guidance.encoder": bool,
    "guidance.image": bool,
    "edit.input": bool,
    "edit.task.mask": lambda text: text.lower().endswith((".png", ".jpg", ".jpeg")),
    "edit.task.other": bool,
    "edit.task.latents": bool,
    "evaluate.features": lambda text: text not in FEATURES and ("/" in text or os.path.isdir(text)),
    "evaluate.inception_path": bool,
    "evaluate.samples": bool,
    "evaluate.reference": bool,
}
"""Keys that name a file or folder -> whether a value is one."""

CODE = "edit.task.measure"
"""The key that names code, FILE.py:FUNCTION. It never comes from a config.json."""


def located(text: str, folder: Path | None = None) -> str:
    """The absolute path of a text, with ``~`` expanded.

    A relative one lies below ``folder`` if it exists there, else below the current folder.
    """
    text = os.path.expanduser(text)
    return os.path.abspath(folder / text if folder and (folder / text).exists() else text)


def make_absolute(config: ConfigDict, folder: Path | None = None) -> None:
    """Make the paths of a config absolute, in place; the toolkit's defaults stay as they are."""
    for key, text in named(config).items():
        put(config, key, located(text, folder))
    path, colon, function = (get(config, CODE) or "").rpartition(":")
    if path:
        put(config, CODE, f"{located(path, folder)}{colon}{function}")


def get(config: ConfigDict, key: str) -> str | None:
    """The text under a dotted key; None where the chosen entry has no such option."""
    *sections, name = key.split(".")
    text: str | None = reduce(lambda part, section: part[section], sections, config).get(name)
    return text


def put(config: ConfigDict, key: str, text: str) -> None:
    """Set the text under a dotted key that the config has."""
    *sections, name = key.split(".")
    reduce(lambda part, section: part[section], sections, config)[name] = text


def named(config: ConfigDict, keys: Collection[str] = PATHS) -> dict[str, str]:
    """The paths that a config names under these keys, without the toolkit's defaults."""
    usual, found = default.get_config(), {}
    for key, is_path in PATHS.items():
        text = get(config, key) if key in keys else None
        if text and is_path(text) and text != get(usual, key):
            found[key] = text
    return found


def restrict(config: ConfigDict, mode: str, file: Path, allowed: Mapping[str, str]) -> list[str]:
    """Keep a command from following the paths of a stranger's config.json, in place.

    Paths that the mode does not follow take the values of configs/default.py.

    Args:
        file: the config.json, absolute; paths inside its folder are followed.
        allowed: the keys and paths that the command names.
    Returns: the words of the command line that would allow the paths left out.
    Raises: ValueError naming the paths that the mode would follow, with the words that allow them.
    """
    usual, root, refused, left_out = default.get_config(), os.path.realpath(file.parent), [], []
    for key, text in named(config).items():
        if allowed.get(key) == text or Path(os.path.realpath(text)).is_relative_to(root):
            continue
        word = f"--config.{key}={shlex.quote(text)}"
        if key.partition(".")[0] in MODES[mode].follows:
            refused.append(word)
        else:
            left_out.append(word)
            put(config, key, get(usual, key) or "")
    if refused:
        raise ValueError(
            f"{file} was written by no command of yours and leads outside its folder; to allow that, add "
            f"{' '.join(refused)}"
        )
    return left_out


# --- whose a config is ------------------------------------------------------------------------------------------------


def key_file() -> Path:
    """Where the key of the user's account lies."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "score-sde-toolkit" / "key"


def signature(config: ConfigDict, command: Sequence[str]) -> str:
    """The signature of a config's paths and of the words that name its config file; empty where there is no key.

    The first signature of an account makes its key.
    """
    key = _key(make=True)
    return _mac(key, config, command) if key else ""


def is_own(config: ConfigDict, command: Sequence[str], signed: object) -> bool:
    """Whether ``signature`` made this text, with the key of this account."""
    key = _key()
    if not key or not isinstance(signed, str):
        return False
    return hmac.compare_digest(_mac(key, config, command), signed)


def _mac(key: bytes, config: ConfigDict, command: Sequence[str]) -> str:
    text = json.dumps([sorted(named(config).items()), list(command)])
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _key(make: bool = False) -> bytes | None:
    """The key, 32 random bytes; None where there is none and none can be written."""
    path = key_file()
    try:
        found = read_bytes(path, 32) if path.is_file() else b""
        if make and len(found) != 32:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, fresh = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(32))
            os.replace(fresh, path)
            found = read_bytes(path, 32)
    except OSError:
        return None
    return found if len(found) == 32 else None
