"""Recovery of a lost config.json from its copy in the checkpoints, after a power loss or a kill."""

from pathlib import Path

from score_sde.storage.reading import read_bytes
from score_sde.storage.writing import write_text

EMPTY = b"\0 \t\r\n"
"""Bytes of a file whose content never reached the disk."""


def restore_config(folder: Path) -> None:
    """Restores a missing or empty config.json of a run with checkpoints, and prints a note."""
    if kept := kept_config(folder):
        from score_sde.engine.log import say  # late: it imports torch

        path, (text, checkpoint) = folder / "config.json", kept
        write_text(path, text)
        say(f"{path} was missing or empty: restored from {checkpoint}")


def kept_config(folder: Path) -> tuple[str, str] | None:
    """Returns the text of a missing or empty config.json, and the name of the checkpoint with the copy.

    Returns None if the file exists, or if no checkpoint has a copy, as in runs of earlier versions.
    """
    if not (folder / "checkpoints").is_dir() or not is_lost(folder / "config.json"):
        return None
    from score_sde.engine import checkpoint
    from score_sde.engine.errors import CheckpointError

    for found in reversed(checkpoint.steps(folder / "checkpoints")):
        try:
            text = checkpoint.read_meta(found).get("config_json")
        except CheckpointError:
            continue
        if isinstance(text, str):
            return text, found.name
    return None


def is_lost(path: Path) -> bool:
    """Returns whether a file is missing or contains only zeros and blanks."""
    if not path.exists():
        return True
    return path.is_file() and path.stat().st_size < 2**20 and not read_bytes(path, 2**20).strip(EMPTY)
