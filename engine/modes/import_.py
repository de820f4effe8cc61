"""Import of the weights of another library as a run."""

import shlex
from pathlib import Path

from score_sde.configs.default import Config
from score_sde.engine import paths
from score_sde.engine.build import build
from score_sde.engine.commands import PROGRAM
from score_sde.engine.config import Options, override
from score_sde.engine.importing import check_place, describe, facts_of, fill, resolved, save
from score_sde.engine.lock import only_writer
from score_sde.engine.log import say
from score_sde.models.checkpoints import FORMATS, recognise


def run(config: Config, workdir: Path, options: Options) -> None:
    """Reads ``--source``, writes a run to ``workdir`` and prints its description.

    Raises: ForeignError for a source that cannot be read; ValueError for a workdir that is not empty, or a config that
        does not fit the weights.
    """
    if not options.source:
        raise ValueError(f"give --source, a file or folder of {', '.join(FORMATS)}")
    check_place(workdir)
    name, path = recognise(options.source)
    foreign = FORMATS[name](path, weights=options.weights)
    config = resolved(config, foreign)
    override(config, options.overrides)
    paths.make_absolute(config)
    facts = facts_of(foreign, config.codec.get("low", -1.0))
    experiment = build(config, facts)
    fill(experiment.network, foreign, config)
    denoiser = experiment.denoiser(experiment.network, config)  # raises for an invalid section ``denoiser``

    origin = {"format": name, "source": path.name, "weights": options.weights if foreign.choice else "only"}
    with only_writer(workdir):
        check_place(workdir)
        save(config, workdir, experiment, foreign.step, denoiser.sigma_data, origin)
    say(*describe(config, experiment, origin))
    if foreign.wrapper:
        say(f"the weights were in a wrapper: {foreign.wrapper}")
    then = f"--workdir {shlex.quote(str(workdir))} --mode sample"
    if config.loss.objective.name == "classification":
        then = f"--workdir RUN --mode sample --config.guidance.classifier={shlex.quote(str(workdir))}"
    say(f"files are in {workdir}; next: {PROGRAM} {then}")
