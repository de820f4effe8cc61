"""config.json again, from what each checkpoint keeps of it, after a loss of power or a kill."""

from pathlib import Path

from score_sde.storage.reading import read_bytes
from score_sde.storage.writing import write_text

EMPTY = b"\0 \t\r\n"
"""Bytes of a file whose content never reached the disk."""


def restore_config(folder: Path) -> None:
    """Write config.json of a run that has checkpoints, if it is missing or holds nothing, and say so."""
    if kept := kept_config(folder):
        from score_sde.engine.log import say  # late: it brings torch

        path, (text, checkpoint) = folder / "config.json", kept
        write_text(path, text)
        say(f"{path} was missing or empty: restored from {checkpoint}")


def kept_config(folder: Path) -> tuple[str, str] | None:
    """The text of a config.json that is missing or holds nothing, and the name of the checkpoint that kept it.

    None where it is there, or no checkpoint kept it, as in runs of earlier versions.
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
    """Whether a file is missing or holds no more than zeros and blanks."""
    if not path.exists():
        return True
    return path.is_file() and path.stat().st_size < 2**20 and not read_bytes(path, 2**20).strip(EMPTY)
