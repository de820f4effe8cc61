"""Commands in messages: training of a named config on the data of another run."""

import shlex
from pathlib import Path

from score_sde.configs.default import Config
from score_sde.engine.config import load
from score_sde.engine.recipe import differences

PROGRAM = "python run.py" if (Path(__file__).parents[1] / "score_sde").is_dir() else "score-sde"
"""The program, in a clone and as an installed package."""


def training_command(
    name: str,
    config: Config,
    folder: Path,
    shape: tuple[int, ...],
    num_classes: int | None = None,
    sections: tuple[str, ...] = ("data", "codec"),
) -> str:
    """Returns the command that trains a named config on the data of a run, into ``folder``.

    Args:
        name: value of --config.
        config: config of the run.
        shape: shape of an example.
        num_classes: number of classes of the network; None for that in the named config.
        sections: sections of the run's config that the command has; ``sde`` for the same noise.
    """
    named = load(name)
    changes = {key: ours for key, (_, ours) in differences(named, config, sections).items() if ours is not None}
    if num_classes not in (None, named.network.num_classes):
        changes["network.num_classes"] = num_classes
    levels = len(named.network.channel_mult)
    if any(side % 2 ** (levels - 1) for side in shape[1:]):
        changes["network.pad"] = True
    words = ["--config", name, "--mode", "train", "--workdir", str(folder)]
    words += [f"--config.{key}={value}" for key, value in changes.items()]
    return f"{PROGRAM} {shlex.join(words)}"
