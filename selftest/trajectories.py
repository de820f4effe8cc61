"""Trajectories of any step on exact mixtures: end point, independence of shape, batch and dtype, and distribution."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from score_sde.samplers import GRIDS, Noise, Step, sample
from score_sde.sde_lib import GaussianMixture
from score_sde.selftest.exact import MEANS, STDS, WEIGHTS, blobs, bumps
from score_sde.selftest.rows import Row, Setting, distance, exactly, worst

NUM, NUM_STEPS = 1000, 64


def independence(name: str, steps: Sequence[Step], setting: Setting, precise: bool = True) -> Iterator[Row]:
    """Checks the last step, and that shape, batch and dtype change no sample; each row is the worst over the steps.

    Args:
        precise: whether float32 must agree with float64; False if rounding may decide whether a move is accepted.
    """
    found = worst(noise_left(step, setting) for step in steps)
    yield Row(f"{name}: noise left by the last step, two-point data", found, 1e-5)
    found = worst(flattened(step, setting) for step in steps)
    yield Row(f"{name}: examples of shape (2, 3) and (6,)", found, 1e4 * setting.rounding)
    found = worst(alone(step, setting) for step in steps)
    yield Row(f"{name}: the same samples alone and in a batch", found, 1e4 * setting.rounding)
    if precise:
        found = worst(precision(step, setting) for step in steps)
        yield Row(f"{name}: float32 against float64", found, 2e-3)


def two_bumps(name: str, step: Step, setting: Setting) -> Row:
    """Returns the row for the distribution of 1000 samples drawn from the prior."""
    return Row(f"{name}: two bumps from the prior, Kolmogorov-Smirnov", kolmogorov_smirnov(step, setting), 2.3)


def draw_from(step: Step, mixture: GaussianMixture, seeds: Tensor, num_steps: int, like: Tensor) -> Tensor:
    """Draws one sample of the mixture for each seed (B,), from the prior over the whole interval; like (B, *)."""
    noise, times = Noise(seeds), GRIDS["log_snr"](step.sde, 1 if step.num_steps == 1 else num_steps)
    x = step.sde.prior_std * noise(like)
    return sample(step, mixture.denoiser(step.sde, v=0.5), x, times, noise)


def kolmogorov_smirnov(step: Step, setting: Setting) -> float:
    """Returns sqrt(N) times the largest distance between the distribution functions; above 1.95 once in a thousand."""
    like = torch.empty(NUM, 1, dtype=setting.dtype, device=setting.device)
    x = exactly(draw_from(step, bumps(setting), torch.arange(NUM), NUM_STEPS, like)).flatten().sort().values
    normal = torch.distributions.Normal(exactly(MEANS), exactly(STDS))
    expected = normal.cdf(x[:, None]) @ exactly(WEIGHTS)
    steps = torch.arange(NUM + 1, dtype=torch.float64) / NUM
    return math.sqrt(NUM) * worst([distance(steps[1:], expected), distance(steps[:-1], expected)])


def noise_left(step: Step, setting: Setting) -> float:
    """Returns the distance of samples of two-point data, -1 and 1, from the nearer point."""
    mixture = GaussianMixture.of_points(setting.tensor([[-1.0], [1.0]]))
    like = torch.empty(16, 1, dtype=setting.dtype, device=setting.device)
    return distance(draw_from(step, mixture, torch.arange(16), 12, like).abs(), 1.0)


def flattened(step: Step, setting: Setting) -> float:
    """Returns the difference between samples of shape (2, 3) and (6,)."""
    flat, shaped = blobs(setting, (6,)), blobs(setting, (2, 3))
    seeds, like = torch.arange(4), torch.empty(4, 6, dtype=setting.dtype, device=setting.device)
    found = draw_from(step, shaped, seeds, 8, like.reshape(4, 2, 3))
    return distance(found.flatten(1), draw_from(step, flat, seeds, 8, like))


def alone(step: Step, setting: Setting) -> float:
    """Returns the difference between samples drawn in batches of 3 and of 12."""
    mixture, like = blobs(setting), torch.empty(12, 2, 2, dtype=setting.dtype, device=setting.device)
    together = draw_from(step, mixture, torch.arange(12), 8, like)
    return distance(draw_from(step, mixture, torch.arange(5, 8), 8, like[5:8]), together[5:8])


def precision(step: Step, setting: Setting) -> float:
    """Returns the difference between samples in float32 and in float64; NaN if the state is not kept in float32."""
    found = []
    for dtype in (torch.float32, torch.float64):
        like = torch.empty(8, 2, 2, dtype=dtype, device=setting.device)
        found.append(draw_from(step, blobs(Setting(setting.device, dtype)), torch.arange(8), 12, like))
    if found[0].dtype != torch.float32:
        return float("nan")
    return distance(*found)
