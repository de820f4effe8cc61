"""The commands that messages print: runs of a named config on the data of another run."""

import shlex
from pathlib import Path

from ml_collections import ConfigDict

from score_sde.engine.config import load
from score_sde.engine.recipe import differences

PROGRAM = "python run.py" if (Path(__file__).parents[1] / "score_sde").is_dir() else "score-sde"
"""How a user starts a command: in a clone, and where the package is installed."""


def training_command(
    name: str,
    config: ConfigDict,
    folder: Path,
    shape: tuple[int, ...],
    num_classes: int | None = None,
    sections: tuple[str, ...] = ("data", "codec"),
) -> str:
    """The command that trains a named config on the data of a run, into ``folder``.

    Args:
        name: of --config.
        config: of the run.
        shape: of an example.
        num_classes: that the network learns; None leaves them to the named config.
        sections: of the run's config that the command takes over; ``sde`` for the same noise.
    """
    known = load(name)
    changes = {key: ours for key, (_, ours) in differences(known, config, sections).items() if ours is not None}
    if num_classes not in (None, known.network.num_classes):
        changes["network.num_classes"] = num_classes
    levels = len(known.network.channel_mult)
    if any(side % 2 ** (levels - 1) for side in shape[1:]):
        changes["network.pad"] = True
    words = ["--config", name, "--mode", "train", "--workdir", str(folder)]
    words += [f"--config.{key}={value}" for key, value in changes.items()]
    return f"{PROGRAM} {shlex.join(words)}"
