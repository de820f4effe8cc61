"""Keyed noise: test vector, normality, independence of seeds, streams, draws and batches, and Brownian paths."""

import math
from collections.abc import Iterator

import numpy as np
import torch

from score_sde.engine.randomness import DITHER, TRAINING, noise, positions, uniform
from score_sde.samplers import Brownian, Noise
from score_sde.samplers.noise import philox
from score_sde.selftest.rows import Row, Setting, distance, exactly, worst


def check(setting: Setting) -> Iterator[Row]:
    """Checks bits, moments, correlations and keys."""
    zero = np.zeros(4, dtype=np.uint64)
    answer = np.array([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], dtype=np.uint64)
    yield Row("Philox of zeros: wrong words", int((philox(zero, zero[:2]) != answer).sum()), 0)

    num, like = 4096, torch.empty(4096, 3, device=setting.device, dtype=setting.dtype)
    draw = Noise(torch.arange(num))
    z = torch.stack([exactly(draw(like)) for _ in range(4)])
    flat = z.flatten()
    moments = [flat.mean(), (flat**2).mean() - 1, (flat**3).mean(), (flat**4).mean() - 3]
    found = worst(abs(m.item()) / math.sqrt(v / len(flat)) for m, v in zip(moments, (1, 2, 15, 96)))
    yield Row("normals: four moments, in standard errors", found, 4.0)
    other = exactly(Noise(torch.arange(num), stream=1)(like))
    others = [z[0, 1:] * z[0, :-1], z[0] * z[1], z[0] * other, z[0, :, 1:] * z[0, :, :-1]]
    found = worst(abs(product.mean().item()) * math.sqrt(product.numel()) for product in others)
    yield Row("normals of two seeds, draws, streams, entries: correlation, in standard errors", found, 4.5)
    later, few = Noise(torch.arange(5, 9), start=2), like[:4]
    yield Row("normals of an example, alone and later", distance(later(few), z[2, 5:9]), 0.0)

    half, whole = (torch.stack([exactly(z(like)) for z in Brownian(torch.arange(num)).moves(n)]) for n in (6, 12))
    joined = (whole[0::2] + whole[1::2]) / math.sqrt(2)
    yield Row(
        "Brownian path: two increments add up to the increment of twice the length",
        distance(joined, half),
        4 * setting.rounding,
    )
    moments = [whole.square().mean() - 1, (whole[0::2] * whole[1::2]).mean()]
    found = worst(abs(m.item()) * math.sqrt(n) for m, n in zip(moments, (whole.numel() / 2, whole.numel() / 2)))
    yield Row("Brownian path: increments are standard and independent, in standard errors", found, 4.0)

    u = exactly(uniform(3, DITHER, positions(0, num), like))
    moments = [u.mean() - 1 / 2, (u**2).mean() - 1 / 3]
    found = worst(abs(m.item()) / math.sqrt(v / u.numel()) for m, v in zip(moments, (1 / 12, 4 / 45)))
    yield Row("uniform numbers: two moments, in standard errors", found, 4.0)
    yield Row("uniform numbers: outside (0, 1)", int((u <= 0).sum() + (u >= 1).sum()), 0)
    pairs = [noise(seed, TRAINING, positions(0, num))(like) for seed in (0, 1)]
    found = abs((exactly(pairs[0]) * exactly(pairs[1])).mean().item()) * math.sqrt(like.numel())
    yield Row("noise of two runs: correlation, in standard errors", found, 4.0)
