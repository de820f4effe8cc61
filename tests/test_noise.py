"""Noise: known answers of both generators, the normal law, and independence of batch, order, dtype and buffer."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from score_sde.samplers import Noise
from score_sde.samplers import noise as module
from score_sde.samplers.noise import normals, philox, random_bits, splitmix


def words(text):
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint64)


# --- known answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "output"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_has_the_published_outputs(counter, key, output):
    assert philox(words(counter), words(key)).tolist() == words(output).tolist()
    several = philox(np.stack([words(counter)] * 3, 1), np.stack([words(key)] * 3, 1))
    assert several.tolist() == np.stack([words(output)] * 3, 1).tolist()


def test_splitmix_has_the_published_outputs():
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    computed = splitmix(torch.tensor([[1234567]]), 3).flatten().tolist()
    assert [word % 2**64 for word in computed] == expected


def test_bits_are_splitmix_seeded_by_philox():
    seed, stream, draw = 0x0123456789ABCDEF, 3, 7
    counter, key = np.array([draw, stream, 0, 0]), np.array([seed & 0xFFFFFFFF, seed >> 32])
    start = philox(counter.astype(np.uint64), key.astype(np.uint64))[:2].tolist()
    mask, state, expected = 2**64 - 1, start[0] << 32 | start[1], []
    for _ in range(4):  # Steele, Lea, Flood, figure 16
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        expected.append(z ^ z >> 31)
    high, low = random_bits(torch.tensor([seed]), stream, draw, 1, 8)[:, 0, 0].tolist()
    assert [h << 32 | l for h, l in zip(high, low)] == expected


def test_normals_are_box_and_muller():
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2**32, (2, 100_000), generator=generator)
    corners = torch.tensor([[0, 0, 2**32 - 1, 2**32 - 1, 2**31], [0, 2**32 - 1, 0, 2**32 - 1, 1]])
    radius_bits, angle_bits = (b.numpy() for b in torch.cat([bits, corners], 1))
    # The float32 value, so that only logarithm, sine and cosine are measured.
    u = (radius_bits.astype(np.float32) + np.float32(0.5)).astype(np.float64) / 2**32
    sign = 1 - 2 * (angle_bits % 2)
    angle = (angle_bits // 2).astype(np.float64) * (np.pi / 2**31) - np.pi / 2
    expected = sign * np.sqrt(-2 * np.log(u)) * np.stack([np.cos(angle), np.sin(angle)])
    computed = normals(torch.cat([bits, corners], 1))
    assert computed.dtype == torch.float32
    np.testing.assert_allclose(computed.numpy(), expected, atol=3e-6, rtol=0)
    assert computed.abs().max() < 6.81


# --- distribution -----------------------------------------------------------------------------------------------------


def test_moments_and_distribution_are_normal():
    z = Noise(torch.arange(8))(torch.empty(8, 50_000)).double()
    num = z.numel()
    for power, (mean, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs((z**power).mean().item() - mean) < 4 * (variance / num) ** 0.5
    assert kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert z.abs().max() > 4.2  # about ten of 400 000 are larger


def test_small_draws_are_normal_too():
    """One number a draw: only the first output of each sequence, over many seeds and many draws."""
    over_seeds = Noise(torch.arange(100_000))(torch.empty(100_000, 1)).flatten()
    noise = Noise(torch.zeros(1, dtype=torch.int64))
    over_draws = torch.cat([noise(torch.empty(1, 1)) for _ in range(20_000)]).flatten()
    for z in (over_seeds, over_draws):
        assert kstest(z.double().numpy(), "norm").pvalue > 1e-3


def relations(num=40_000):
    """Pairs of sequences that must be independent."""
    like = torch.empty(1, num)

    def draw(seed=5, stream=0, start=0):
        return Noise(torch.tensor([seed]), stream, start)(like).flatten()

    first = draw()
    others = {
        "next seed": draw(seed=6),
        "seed with another high half": draw(seed=5 + 2**32),
        "negative seed": draw(seed=-5),
        "next draw": draw(start=1),
        "far draw": draw(start=2**31),
        "next stream": draw(stream=1),
        "last stream": draw(stream=2**32 - 1),
        "seed and draw exchanged": draw(seed=0, start=5),
        "neighbour": first.roll(1),
        "pair": torch.cat([first[num // 2 :], first[: num // 2]]),
    }
    return first, others


def test_sequences_are_independent():
    first, others = relations()
    num = len(first)
    for name, other in others.items():
        assert not torch.equal(first, other), name
        for f in (lambda z: z, lambda z: z**2 - 1, lambda z: z**3):
            a, b = f(first.double()), f(other.double())
            correlation = (a * b).mean() / (a.square().mean() * b.square().mean()).sqrt()
            assert abs(correlation.item()) < 4 / num**0.5, name


def test_streams_and_draws_are_not_interchangeable():
    seed, like = torch.tensor([1]), torch.empty(1, 4)
    values = [Noise(seed, stream, start)(like).tolist() for stream in range(4) for start in range(4)]
    assert len({str(v) for v in values}) == 16


# --- invariances ------------------------------------------------------------------------------------------------------

SHAPES = [(1,), (5,), (6,), (3, 5), (1, 8, 8), (3, 7, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_example_has_the_same_noise_in_every_batch(shape):
    seeds = torch.tensor([3, 1, 4, 1, 5, 9, 2])
    noise = Noise(seeds)
    draws = [noise(torch.empty(7, *shape)) for _ in range(20)]
    assert draws[0].shape == (7, *shape)
    assert all(torch.equal(z[1], z[3]) for z in draws)
    for k in (0, 2, 6):
        alone = Noise(seeds[k : k + 1])
        assert all(torch.equal(alone(torch.empty(1, *shape))[0], z[k]) for z in draws)
    order = torch.tensor([6, 0, 3, 2])
    shuffled = Noise(seeds[order])
    assert all(torch.equal(shuffled(torch.empty(4, *shape)), z[order]) for z in draws)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_dtype_only_rounds(shape):
    seeds = torch.arange(3)
    single = Noise(seeds)(torch.empty(3, *shape))
    assert single.dtype == torch.float32
    assert torch.equal(Noise(seeds)(torch.empty(3, *shape, dtype=torch.float64)), single.double())
    assert torch.equal(Noise(seeds)(torch.empty(3, *shape, dtype=torch.bfloat16)), single.bfloat16())


@pytest.mark.parametrize("start", [1, 15, 16, 17, 40])
def test_start_skips_draws(start):
    seeds, like = torch.arange(2), torch.empty(2, 5)
    whole, rest = Noise(seeds, stream=2), Noise(seeds, stream=2, start=start)
    for _ in range(start):
        whole(like)
    assert whole.draw == rest.draw
    for _ in range(20):
        assert torch.equal(whole(like), rest(like))


@pytest.mark.parametrize("ahead", [1, 3, 16])
@pytest.mark.parametrize("normals", [1, 20, 1 << 17])
def test_the_buffer_size_does_not_change_the_noise(monkeypatch, ahead, normals):
    monkeypatch.setattr(module, "_MOST_AHEAD", ahead)
    monkeypatch.setattr(module, "_MOST_NORMALS", normals)
    noise, like = Noise(torch.arange(2)), torch.empty(2, 5)
    draws = [noise(like) for _ in range(35)]
    for k in range(0, 35, 6):
        assert torch.equal(Noise(torch.arange(2), start=k)(like), draws[k])


def test_shapes_and_dtypes_may_alternate():
    noise, seeds = Noise(torch.arange(2)), torch.arange(2)
    likes = [torch.empty(2, 5), torch.empty(2, 5), torch.empty(2, 3, 4), torch.empty(2, 5).double(), torch.empty(2, 5)]
    for k, like in enumerate(likes * 2):
        assert torch.equal(noise(like), Noise(seeds, start=k)(like))


def test_large_examples():
    z = Noise(torch.tensor([0]))(torch.empty(1, 3, 512, 513)).flatten()
    assert len(z.unique()) > 0.97 * len(z)  # float32 numbers coincide, sequences do not repeat
    assert abs(z.mean().item()) < 4 / len(z) ** 0.5
    assert not torch.equal(z[: len(z) // 4], z[len(z) // 4 : len(z) // 2])
