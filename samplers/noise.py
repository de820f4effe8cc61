"""Noise as a function of seed and position, independent of the batch, the device and earlier draws.

Philox-4x32-10 turns (seed, stream, draw) into the start of a SplitMix64 sequence, which gives the bits of one draw of
one example: Philox is the safer way to combine keys, SplitMix64 takes a sixth of its time. The Box-Muller transform
turns bits into normals, with logarithm, sine and cosine as short polynomials of additions and multiplications. IEEE
arithmetic rounds these equally everywhere, so the noise of a seed is the same, bit for bit, on CPU and GPU.

References: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011; Steele, Lea, Flood, "Fast
Splittable Pseudorandom Number Generators", 2014.
"""

import math
from collections.abc import Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from score_sde.sde_lib.devices import put
from score_sde.sde_lib.process import check_state

_HALF, _MASK = np.uint64(32), np.uint64(0xFFFFFFFF)
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MOST_AHEAD, _MOST_NORMALS, _MOST_STATES = 32, 1 << 17, 512
"""Largest numbers of draws, normals and initial states that are computed at a time; small draws share the overhead."""


class Noise:
    """Standard normals for a batch; the draws of example i depend only on its seed and the stream.

    Draw number k of a shape is independent of the batch and of the use of earlier draws, so an interrupted computation
    resumes with ``start``.

    Args:
        seeds: (B,) integers below 2^63, one per example, in a tensor of any integer dtype or a sequence.
        stream: number of one of the independent sequences of a seed, 0 to 2^64 - 1.
        start: number of the first draw, at least 0.
    Raises: ValueError for seeds that are not integers or not (B,), for a stream or start out of range; when called, for
        a batch of another size than the seeds or of another kind than real floating-point numbers.
    """

    def __init__(self, seeds: Tensor | Sequence[int], stream: int = 0, start: int = 0) -> None:
        if not (isinstance(stream, int) and 0 <= stream < 1 << 64):
            raise ValueError(f"stream {stream!r}: need an integer, 0 to 2^64 - 1")
        if not (isinstance(start, int) and start >= 0):
            raise ValueError(f"start {start!r}: need the number of a draw, 0 or more")
        self.seeds, self.stream, self.draw = _seeds(seeds), stream, start
        self._states, self._first_state = torch.empty(0), 0
        self._buffer, self._first = torch.empty(0), 0

    def __call__(self, like: Tensor) -> Tensor:
        """Next draw, shaped as ``like`` (B, *), in its dtype and on its device."""
        if not self._has(like):
            check_state(like)
            if len(like) != len(self.seeds):
                raise ValueError(f"{len(self.seeds)} seeds for a batch of {len(like)} examples: need one for each")
            size = like.shape[1:].numel()
            states = self._ahead(max(1, min(_MOST_AHEAD, _MOST_NORMALS // max(1, like.numel()))), like.device)
            z = normals(splitmix_halves(states, size)).movedim(0, 2).flatten(2)[..., :size]
            self._buffer, self._first = z.reshape(len(states), *like.shape).to(like.dtype), self.draw
        self.draw += 1
        return self._buffer[self.draw - 1 - self._first]

    def _ahead(self, num: int, device: torch.device) -> Tensor:
        """Initial states of the next ``num`` draws, or fewer, from a buffer of many."""
        first = self.draw - self._first_state
        if self._states.device != device or not 0 <= first < len(self._states):
            most = max(num, _MOST_STATES // max(1, len(self.seeds)))
            self._states, self._first_state = states(self.seeds, self.stream, self.draw, most, device), self.draw
            first = 0
        return self._states[first : first + num]

    def _has(self, like: Tensor) -> bool:
        buffer = self._buffer
        same = (buffer.shape[1:], buffer.dtype, buffer.device) == (like.shape, like.dtype, like.device)
        return same and self._first <= self.draw < self._first + len(buffer)


def _seeds(seeds: Tensor | Sequence[int]) -> Tensor:
    """Seeds as int64 on the CPU, (B,)."""
    if isinstance(seeds, Sequence):
        if not all(isinstance(seed, Integral) and -(1 << 63) <= seed < 1 << 63 for seed in seeds):
            raise ValueError("seeds that are not integers below 2^63: use a list of int, or torch.arange(B)")
        seeds = torch.tensor(seeds, dtype=torch.int64)
    seeds = torch.as_tensor(seeds)
    if seeds.is_floating_point() or seeds.is_complex() or seeds.dtype == torch.bool:
        raise ValueError(f"seeds of {seeds.dtype}: need integers, such as torch.arange(B)")
    if seeds.ndim != 1:
        raise ValueError(f"seeds of shape {tuple(seeds.shape)}: need one for each example, (B,)")
    return seeds.to("cpu", torch.int64)


def random_bits(
    seeds: Tensor,
    stream: int,
    draw: int | np.ndarray,
    num_draws: int,
    size: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Uniform 32-bit integers as int64, from draw number ``draw`` on; (2, num_draws, B, size / 2).

    ``draw`` may be one number per example, (B,).
    """
    return splitmix_halves(states(seeds, stream, draw, num_draws, device), size)


def states(
    seeds: Tensor, stream: int, draw: int | np.ndarray, num_draws: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Initial states of the SplitMix64 sequences from draw number ``draw`` on; words as int64, (num_draws, B)."""
    words, number = seeds.cpu().numpy().view(np.uint64), np.uint64(stream)
    counter = np.zeros((4, num_draws, len(words)), dtype=np.uint64)
    counter[0] = draw + np.arange(num_draws)[:, None]
    counter[1], counter[2] = number & _MASK, number >> _HALF
    high, low = philox(counter, np.stack([words & _MASK, words >> _HALF])[:, None])[:2]
    return put(torch.from_numpy((high << _HALF | low).view(np.int64)), torch.device(device))


def philox(counter: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Philox-4x32-10 on 32-bit words in uint64: counter (4, *), key (2, *); returns (4, *)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _MASK, (p0 >> _HALF) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return np.stack([c0, c1, c2, c3])


def splitmix(start: Tensor, num: int) -> Tensor:
    """Next ``num`` outputs of SplitMix64 from each state (*, 1); 64-bit words as int64, (*, num)."""
    z = start + _GOLDEN * torch.arange(1, num + 1, device=start.device)
    shifted = torch.empty_like(z)

    def mix(shift: int) -> Tensor:
        torch.bitwise_right_shift(z, shift, out=shifted)
        return z.bitwise_xor_(shifted.bitwise_and_((1 << 64 - shift) - 1))  # the mask clears copies of the sign bit

    mix(30).mul_(-0x40A7B892E31B1A47)
    mix(27).mul_(-0x6B2FB644ECCEEE15)
    return mix(31)


def splitmix_halves(start: Tensor, size: int) -> Tensor:
    """Uniform 32-bit integers, ``size`` from each state (*), as int64: upper halves, lower halves; (2, *, size / 2)."""
    words = splitmix(start[..., None], (size + 1) // 2)
    halves = words.new_empty(2, *words.shape)
    torch.bitwise_and(words, 0xFFFFFFFF, out=halves[1])
    torch.bitwise_and(words.bitwise_right_shift_(32), 0xFFFFFFFF, out=halves[0])
    return halves


def normals(bits: Tensor) -> Tensor:
    """Standard normals in float32 from pairs of 32-bit integers (2, *), by the Box-Muller transform; (2, *).

        sign sqrt(-2 log u) (cos(angle), sin(angle)),    u in (0, 1], sign +1 or -1, angle in [-pi/2, pi/2]

    Logarithm, sine and cosine are accurate to a few units in the last place; the largest normal is 6.8. The memory
    layout places both normals of a pair (2, *, n) one after the other, so ``movedim(0, -2).flatten(-2)`` copies
    nothing.
    """
    radius_bits, angle_bits = bits
    radius = _log(radius_bits.float().add_(0.5).mul_(2.0**-32)).mul_(-2.0).sqrt_()
    radius.view(torch.int32).bitwise_xor_((angle_bits << 31).to(torch.int32))  # the lowest bit is the sign
    sin, cos = _sin_cos((angle_bits & 0xFFFFFFFE).float().mul_(math.pi * 2.0**-32).sub_(0.5 * math.pi))
    z = radius.new_empty(*radius.shape[:-1], 2, radius.shape[-1]).movedim(-2, 0)
    torch.mul(cos, radius, out=z[0])
    torch.mul(sin, radius, out=z[1])
    return z


def _log(u: Tensor) -> Tensor:
    """log u = exponent log 2 + 2 artanh((m - 1) / (m + 1)) with m in [sqrt(1/2), sqrt(2)), split on the bits of u."""
    half_root = 0x3F3504F3
    bits = u.view(torch.int32) - half_root
    mantissa = (bits & 0x007FFFFF).add_(half_root).view(torch.float32)
    s = (mantissa - 1.0).div_(mantissa + 1.0)
    artanh = _polynomial(s * s, [2 / 9, 2 / 7, 2 / 5, 2 / 3, 2.0]).mul_(s)
    return (bits >> 23).float().mul_(math.log(2)).add_(artanh)


def _sin_cos(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine on [-pi/2, pi/2] by their series."""
    square = angle * angle
    cos = _polynomial(square, [(-1.0) ** k / math.factorial(2 * k) for k in range(7, -1, -1)])
    sin = _polynomial(square, [(-1.0) ** k / math.factorial(2 * k + 1) for k in range(6, -1, -1)])
    return sin.mul_(angle), cos


def _polynomial(x: Tensor, coefficients: list[float]) -> Tensor:
    """Polynomial by Horner's rule, in separate multiplications and additions, so that no device fuses them."""
    result = x * coefficients[0]
    for c in coefficients[1:-1]:
        result.add_(c).mul_(x)
    return result.add_(coefficients[-1])
