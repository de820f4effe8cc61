"""Every codec's round trip and Jacobian."""

import math
from collections.abc import Iterator

import torch

from score_sde.data import CODECS
from score_sde.selftest.rows import Row, Setting, distance, exactly

LEVELS = {"identity": (0,), "standardize": (0,)}
"""Numbers of levels for each codec; 2, 17 and 256 by default."""

MEASURED = {"standardize": {"means": (3.0,), "stds": (0.25,)}}
"""Arguments of codecs that are fitted to data, for one channel."""


def check(setting: Setting) -> Iterator[Row]:
    """Checks the round trip, rounding, the range and the log-determinant."""
    for name, codec in CODECS.items():
        for levels in LEVELS.get(name, (2, 17, 256)):
            code, title = codec(levels=levels, **MEASURED.get(name, {})), f"{name}, {levels} levels"
            values = torch.arange(levels or 9, device=setting.device).repeat(2, 1, 1)
            yield Row(
                f"{title}: values changed by encode and decode", changed(code.decode(code.encode(values)), values), 0
            )
            noisy = values + (torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) - 0.5).to(
                values.device
            )
            if levels:
                decoded = code.decode(code.encode(noisy))
                yield Row(f"{title}: values changed by noise within a bin", changed(decoded, values), 0)
                ends = code.encode(setting.tensor([[-0.5, levels - 0.5]]))
                yield Row(f"{title}: the bins fill [-1, 1]", distance(ends[0], [-1.0, 1.0]), 1e-6)
                x = torch.linspace(-1.3, 1.3, 27, device=setting.device)[None]
                outside = exactly(code.decode(x))
                yield Row(f"{title}: values outside the levels", int(((outside < 0) | (outside > levels - 1)).sum()), 0)
            slope = (exactly(code.encode(values[..., 1:])) - exactly(code.encode(values[..., :-1]))).mean().item()
            found = distance(code.log_det((1, 6)), 6 * math.log(slope))
            yield Row(f"{title}: log-determinant of six dimensions", found, 1e-5)


def changed(found: torch.Tensor, values: torch.Tensor) -> int:
    """Returns the number of entries that differ."""
    return int((exactly(found) != exactly(values)).sum())
