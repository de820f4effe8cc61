"""Export of a run to the files of another library."""

from collections.abc import Callable
from pathlib import Path

from score_sde.configs.default import Config
from score_sde.engine import checkpoint
from score_sde.engine.build import Experiment
from score_sde.engine.config import Options
from score_sde.engine.diffusers_export import write_diffusers
from score_sde.engine.load import check_flow, load
from score_sde.engine.log import say
from score_sde.storage.naming import pick


def run(config: Config, workdir: Path, options: Options) -> None:
    """Writes the run in the format of ``--format`` to ``workdir``/export/<format>.

    Raises: ValueError with all the reasons, if the library has no such network or process.
    """
    if not options.format:
        raise ValueError(f"give --format ({' | '.join(FORMATS)})")
    write, folder = pick(FORMATS, "format", options.format), workdir / "export" / options.format
    experiment, denoiser, found = load(config, workdir, options)
    check_flow(denoiser, workdir)
    description = write(folder, config, experiment)
    say(f"{description}, {options.weights} weights of step {checkpoint.read_meta(found)['step']}")
    say(f"files are in {folder}")


FORMATS: dict[str, Callable[[Path, Config, Experiment], str]] = {"diffusers": write_diffusers}
"""Values of ``--format``: (folder, config, experiment) -> description of the files."""
