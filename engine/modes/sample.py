"""Sampling of a run: samples.npz, grid.png and manifest.json."""

from pathlib import Path

import torch

from score_sde.configs.default import Config
from score_sde.engine import plane, ranks
from score_sde.engine.config import Options
from score_sde.engine.drawing import draw_run, write_samples
from score_sde.engine.files import write_json
from score_sde.engine.guidance import ALL
from score_sde.engine.likelihood_report import accuracy
from score_sde.engine.log import say
from score_sde.engine.results import result_folder


def run(config: Config, workdir: Path, given: Options) -> None:
    """Draws samples; writes samples.npz, grid.png and manifest.json to ``workdir``/samples/<sampler>-<steps>."""
    num = config.sample.num_samples
    drawn = draw_run(config, workdir, given, num, config.sample.batch_size)
    if ranks.rank() > 0:
        return
    experiment, manifest = drawn.experiment, drawn.manifest

    target = workdir / "samples" / f"{manifest['sampler']}-{manifest['steps']}"
    pairs = {"latents": drawn.latents, "x0": drawn.x0, "levels": torch.tensor(experiment.facts.levels)}
    columns = pairs if config.sample.keep_latents else {}
    optional = {"log_prob": drawn.log_prob, "label": drawn.label}
    columns |= {name: values for name, values in optional.items() if values is not None}
    with result_folder(target, "manifest.json", manifest["asked"]) as folder:
        write_samples(folder, experiment.codec.decode(drawn.x0).cpu(), experiment.facts, **columns)
        write_json(folder / "manifest.json", manifest)
    cost = f"{num} samples in {manifest['seconds']:.1f} s, {manifest['nfe']:g} evaluations each"
    say(f"{cost}, from step {manifest['checkpoint_step']} ({given.weights})")
    guidance = manifest["guidance"]
    if guidance.get("class", ALL) != ALL:
        say(f"of class {guidance['label']}, {guidance['class']}")
    if density := manifest.get("log_prob"):
        nats = f"{density['nats']:.3f} +- {density['nats_stderr']:.3f} nats in units of the data"
        say(f"log-density {nats} ({density['solver']}; trace {density['trace']})")
        say(*accuracy({**density, "settings": config.likelihood}))
        say(f"the samples keep noise of standard deviation {density['noise']:.2g} in units of the network")
    say(f"files are in {target}")
    if pictures := plane.draw(workdir, experiment, drawn.denoiser, config, drawn.checkpoint, given.weights):
        say(f"density.png and trajectories.png of these weights are in {pictures}")
