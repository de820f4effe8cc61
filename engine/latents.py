"""Latents of the probability flow: encoding, decoding and interpolation of examples."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image as Picture
from torch import Tensor

from score_sde.configs.choices import options_of
from score_sde.configs.default import Config, Sample
from score_sde.data import DataError, table, write_gif
from score_sde.engine import checkpoint
from score_sde.engine.build import Experiment
from score_sde.engine.drawing import Counted, write_samples
from score_sde.engine.edit_task import SHOWN, FlowTask
from score_sde.engine.examples import read_examples, spaced
from score_sde.engine.files import read_npz, write_npz
from score_sde.engine.log import Progress
from score_sde.engine.pictures import compared, is_image, picture, save
from score_sde.engine.sampler import flow_options, make_flow
from score_sde.samplers import DDIM, Ancestral, Noise, Step, sample
from score_sde.samplers.draw import numbered
from score_sde.samplers.editing import depth_time, flow_path, slerp, stochastic_path
from score_sde.samplers.grids import karras
from score_sde.sde_lib import NonFiniteError

PRIOR = "prior draws"
"""Label of the path between two draws of the prior, which has no examples at its ends."""


REACH = 2.5
"""Value of a latent shown as white; its negative is black."""


@dataclass(frozen=True)
class Interpolate(FlowTask):
    """Paths between two examples; writes grid.png, a row per path, and animation.gif.

    Args:
        first, second: numbers of the examples at the ends, from 0; negative ones count from the last.
        frames: pictures along a path, both ends included.
        depths: noise fractions of the variance at which paths run through noisy states, each in (0, 1).
    """

    first: int = 0
    second: int = -1
    frames: int = 11
    depths: tuple[float, ...] = (0.3, 0.6, 0.9)

    def follow(
        self, folder: Path, experiment: Experiment, denoise: Counted, config: Config, split: str
    ) -> dict[str, Any]:
        """Writes the files; returns manifest entries."""
        facts = experiment.facts
        if len(facts.shape) == 1:
            raise ValueError(
                f"--task interpolate shows images and signals, and the run has examples of shape {facts.shape}"
            )
        dataset = read_examples(config, experiment, split)
        num = len(dataset)
        for key, number in (("first", self.first), ("second", self.second)):
            if not -num <= number < num:
                raise ValueError(f"edit.task.{key} {number}: need 0 to {num - 1}, or -{num} to -1 from the last")
        ends = dataset.batch([self.first, self.second])["x"]
        weights = torch.linspace(0, 1, self.frames)
        x = experiment.codec.encode(ends.to(experiment.device))

        nfe: dict[str, int] = {}
        rows, progress = {}, Progress(len(self.depths) + 3, "paths")
        for label, path in paths(experiment, denoise, x, weights, self.depths, config):
            if not torch.isfinite(path).all():
                raise NonFiniteError(f"the path {label!r} is not finite; use more --steps")
            rows[label] = experiment.codec.decode(path).cpu()
            nfe[label] = denoise.calls - sum(nfe.values())
            progress.advance(1)
        progress.close()

        names = [f"{weight:.2f}" for weight in weights.tolist()]
        sides = {label: (None, None) if label == PRIOR else ends for label in rows}

        def show(which: slice) -> Picture:
            strips = {label: [sides[label][0], *row[which], sides[label][1]] for label, row in rows.items()}
            return compared(strips, [["first"], names[which], ["second"]], facts)

        save(folder / "grid.png", show(slice(None)))
        write_gif(folder / "animation.gif", [show(slice(k, k + 1)) for k in range(len(names))])
        taken = {"steps": config.sample.steps, "t_min": config.sample.t_min, **ancestral_options(config.sample)}
        taken |= flow_options(config.sample)
        return {"options": {**asdict(self), **taken}, "split": split, "paths": nfe}


def paths(
    experiment: Experiment, denoise: Counted, x: Tensor, weights: Tensor, depths: Sequence[float], config: Config
) -> Iterator[tuple[str, Tensor]]:
    """Yields labels and paths (frames, *) between the encoded pair x (2, *).

    The paths are linear in x; in noisy states of q(x_t | x_0) at each of ``depths``; and in latents of the
    probability flow. The last path joins two draws of the prior, the latents of the seeds ``seed`` and ``seed + 1`` in
    ``--mode sample``.
    """
    sde, settings = experiment.sde, config.sample
    first, second = x.split(1)
    weights = weights.to(x).reshape(-1, *[1] * (x.ndim - 1))
    same_seed, end = torch.full((len(weights),), config.seed), settings.t_min or None
    steps = settings.steps or Step.num_steps
    times_of = {depth: depth_time(sde, depth, experiment.sigma_data(config)) for depth in depths}
    yield "pixels" if x.ndim == 4 else "values", torch.lerp(first, second, weights)
    for depth, t in times_of.items():
        step, times = Ancestral(sde, **ancestral_options(config.sample)), karras(sde, steps, t, end)
        yield f"noise {depth:g}", stochastic_path(step, denoise, first, second, weights, times, Noise(same_seed))
    flow = make_flow(config.sample, experiment)
    yield "flow latents", flow_path(flow, denoise, first, second, weights)
    latents = sde.prior_std * Noise(torch.tensor([config.seed, config.seed + 1]))(x)
    (start, stop), times = latents.split(1), karras(sde, steps, end=end)
    yield PRIOR, sample(DDIM(sde), denoise, slerp(start, stop, weights), times, Noise(same_seed))


class Encode(FlowTask):
    """Encodes the first examples of a split to latents of the probability flow, and decodes them."""

    def follow(
        self, folder: Path, experiment: Experiment, denoise: Counted, config: Config, split: str
    ) -> dict[str, Any]:
        """Writes latents.npz and grid.png; returns manifest entries with the error of the round trip."""
        dataset, codec = read_examples(config, experiment, split), experiment.codec
        num, flow = min(config.edit.num_examples or len(dataset), len(dataset)), make_flow(config.sample, experiment)

        parts, progress = [], Progress(num, "examples")
        for rows in torch.arange(num).split(config.edit.batch_size):
            batch = dataset.batch(rows.numpy())
            x = codec.encode(batch["x"].to(experiment.device))
            with numbered(rows):
                latents = flow.encode(denoise, x)
                back = flow.decode(denoise, latents)
            parts.append((x.cpu(), latents.cpu(), back.cpu(), batch.get("label", rows)))
            progress.advance(len(rows))
        progress.close()
        x, latents, back, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        columns = {"label": labels.numpy()} if dataset.num_classes else {}
        write_npz(folder / "latents.npz", latents=latents.numpy(), **columns)
        if is_image(experiment.facts):
            shown = round_trip_picture(codec.decode(x), latents, codec.decode(back), experiment.facts.levels)
            save(folder / "grid.png", shown)
        elif len(experiment.facts.shape) > 1:
            which = spaced(num, SHOWN)
            rows = {"examples": list(codec.decode(x)[which]), "and back": list(codec.decode(back)[which])}
            save(folder / "grid.png", compared(rows, [list(map(str, which))], experiment.facts))
        else:
            picture(folder / "grid.png", latents, experiment.facts)

        error, same = codec.values(back.double()) - codec.values(x.double()), codec.decode(back) == codec.decode(x)
        found: dict[str, float | None] = {"rms": error.square().mean().sqrt().item(), "worst": error.abs().max().item()}
        found["same_level"] = same.double().mean().item() if experiment.facts.levels else None
        return {"options": flow_options(config.sample), "split": split, "num_examples": num, "round_trip": found}


def round_trip_picture(examples: Tensor, latents: Tensor, back: Tensor, levels: int) -> Picture:
    """Picture of evenly spaced examples with their numbers, their latents, and the decoded latents."""
    which = torch.from_numpy(spaced(len(examples), SHOWN))
    shades = ((levels - 1) * (0.5 + latents / (2 * REACH)).clamp(0, 1)).round().to(torch.uint8)
    rows = {"examples": examples[which], "latents": shades[which], "and back": back[which]}
    return table({label: list(row) for label, row in rows.items()}, [[str(k) for k in which.tolist()]], levels)


@dataclass(frozen=True)
class Decode(FlowTask):
    """Decodes latents by the probability flow.

    Args:
        latents: the latents.npz of the task encode, or a samples.npz that kept its latents.
    """

    latents: str = ""

    def follow(
        self, folder: Path, experiment: Experiment, denoise: Counted, config: Config, split: str
    ) -> dict[str, Any]:
        """Writes samples.npz and grid.png; returns manifest entries."""
        latents, flow = read_latents(self.latents, experiment), make_flow(config.sample, experiment)
        parts, progress = [], Progress(len(latents), "latents")
        for rows in torch.arange(len(latents)).split(config.edit.batch_size):
            with numbered(rows):
                x = flow.decode(denoise, latents[rows].to(experiment.device))
            parts.append(experiment.codec.decode(x).cpu())
            progress.advance(len(rows))
        progress.close()
        write_samples(folder, torch.cat(parts), experiment.facts)
        path = self.latents
        return {
            "options": flow_options(config.sample),
            "latents": path,
            "sha256": checkpoint.sha256(Path(path)),
            "num_samples": len(latents),
        }


def read_latents(path: str, experiment: Experiment) -> Tensor:
    """Reads the latents (N, *) of a file, float32.

    Raises: DataError if the file is missing, damaged or without latents; ValueError for latents of another shape.
    """
    shape = experiment.facts.shape
    if not path:
        raise ValueError("edit.task.latents is empty: give the latents.npz that --task encode wrote")
    latents = read_npz(Path(path), "latents")["latents"]
    if latents.dtype not in ("float16", "float32", "float64"):
        raise DataError(f"{path} contains latents of type {latents.dtype}: write it with --task encode")
    if latents.shape[1:] != shape or len(latents) == 0:
        raise ValueError(f"{path} contains latents of shape {latents.shape}, the run has examples of shape {shape}")
    found = torch.from_numpy(latents).float()
    if not found.isfinite().all():
        raise DataError(f"{path} contains non-finite latents: write it with --task encode")
    return found


def ancestral_options(settings: Sample) -> dict[str, Any]:
    """The options of the sampler ``ancestral``: from the config where it chose that sampler, else the defaults."""
    return options_of("sample.sampler", "ancestral", settings.sampler)


def report(round_trip: dict[str, float | None]) -> str:
    """Text about the error of encoding and decoding."""
    unit = "units of the data" if round_trip["same_level"] is None else "levels"
    text = f"round trip: error {round_trip['rms']:.2g} {unit} root mean square, {round_trip['worst']:.2g} at most"
    if round_trip["same_level"] is not None:
        text += f"; {100 * round_trip['same_level']:.4g} % of the entries return to the same level"
    return text
