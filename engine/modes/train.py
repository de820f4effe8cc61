"""Training of a run, from its newest checkpoint."""

from pathlib import Path

from score_sde.configs.default import Config
from score_sde.engine.config import Options
from score_sde.engine.lock import only_writer
from score_sde.engine.log import check_name
from score_sde.engine.training.loop import train
from score_sde.engine.training.signals import StopSignals


def run(config: Config, workdir: Path, options: Options) -> None:
    """Trains the config in ``workdir``, from the newest checkpoint there.

    Raises: Stopped after a checkpoint, on a signal.
    """
    check_name(workdir)
    with only_writer(workdir) as writer, StopSignals() as signals:
        train(config, workdir, options, signals, writer)
