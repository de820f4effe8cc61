"""Traces of Jacobians: exact ones, and random ones with closed-form mean and variance."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from score_sde.samplers import Noise
from score_sde.sde_lib import PROBES, Exact, Hutchinson
from score_sde.sde_lib.trace import CHUNK, exact_trace, redrawn, traces, turned, walsh

SHAPE, COPIES = (2, 3), 20_000


def normals(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(x):
    """A map whose Jacobian is neither symmetric nor diagonal, and the Jacobian."""
    matrix = normals(6, 6, seed=3) + torch.diag(torch.arange(6.0).double())
    return (x.flatten(1) @ matrix.mT).reshape(x.shape), matrix


def bent(x):
    """A nonlinear map, so that each example has its own Jacobian."""
    return torch.sin(linear(x)[0]) * x.flatten(1).sum(1).reshape(-1, *[1] * (x.ndim - 1))


def estimates(kind, num, seed=0):
    """Estimates of the linear map's trace for many copies of an example; (COPIES, K)."""
    x = torch.ones(COPIES, *SHAPE, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(seed)

    def draw(like):
        return torch.randn(like.shape, dtype=like.dtype, generator=generator)

    return traces(linear(x)[0], x, Hutchinson(draw, num, kind).start(x)(slice(None)))


# --- one Jacobian -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 2, 4)], ids=str)
def test_the_exact_trace_matches_the_jacobian(shape):
    x = normals(4, *shape).requires_grad_()

    def function(x):
        return torch.sin(3 * x) * x.flatten(1).sum(1).reshape(-1, *[1] * len(shape)) + x.roll(1, -1) ** 2

    probes = Exact().start(x)(slice(None))
    num = math.prod(shape)
    assert probes.shape == exact_trace(x).shape == (1, num, *x.shape)
    found = traces(function(x), x, probes)
    jacobians = [torch.autograd.functional.jacobian(function, x[k : k + 1]).reshape(num, num) for k in range(4)]
    torch.testing.assert_close(found, torch.stack([jacobian.trace() for jacobian in jacobians])[:, None])


@pytest.mark.parametrize("few", [0, 60, 1 << 12])
@pytest.mark.parametrize("num", [1, 3, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_every_estimate_is_the_quadratic_form_of_its_probe_and_example(num, few, monkeypatch):
    """v^T J v, for any number of products at a time."""
    monkeypatch.setattr("score_sde.sde_lib.trace.FEW", few)
    x, v = normals(4, *SHAPE).requires_grad_(), normals(num, 2, 4, *SHAPE, seed=1)
    found = traces(bent(x), x, v)
    for k in range(4):
        jacobian = torch.autograd.functional.jacobian(bent, x[k : k + 1]).reshape(6, 6)
        forms = torch.einsum("npi,ij,npj->n", v[:, :, k].flatten(2), jacobian, v[:, :, k].flatten(2))
        torch.testing.assert_close(found[k], forms)
    assert found.shape == (4, num)
    assert not found.requires_grad


@pytest.mark.parametrize("num", [2, 12])
def test_channels_last_networks_have_the_same_traces(num):
    """torch cannot batch the derivative of their group normalisation."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 3, 3, padding=1)
    network = nn.Sequential(*layers).double()
    x = normals(2, 3, 2, 2).requires_grad_()
    exact, v = exact_trace(x), normals(num, 1, 2, 3, 2, 2, seed=1)
    expected = [traces(network(x), x, probes) for probes in (exact, v)]
    network.to(memory_format=torch.channels_last)
    for probes, form in zip((exact, v), expected, strict=True):
        torch.testing.assert_close(traces(network(x), x, probes), form)


def test_large_examples_take_one_product_at_a_time():
    """The backward pass of channels_last networks requires it, and it is faster for images."""
    taken = []
    x = normals(1 << 7, 1 << 5).requires_grad_()
    value = x**2
    value.register_hook(lambda gradient: taken.append(gradient.shape))
    traces(value, x, normals(3, 1, 1 << 7, 1 << 5, seed=1))
    assert taken == 3 * [x.shape]


def test_a_trace_can_be_differentiated():
    """tr d(x^3)/dx is the sum of 3 x^2, whose gradient is 6 x."""
    x = normals(3, *SHAPE).requires_grad_()
    (found,) = torch.autograd.grad(traces(x**3, x, exact_trace(x), create_graph=True).sum(), x)
    torch.testing.assert_close(found, 6 * x)


# --- random probes ----------------------------------------------------------------------------------------------------


def test_probes_match_their_definition():
    z = normals(5, 3, 2, 4)
    signs = PROBES["rademacher"].make(z)
    assert torch.equal(signs[:, 0], z.sign())
    assert torch.equal(PROBES["gauss"].make(z)[:, 0], z)
    frames = PROBES["orthogonal"].make(z)[:, 0].flatten(2).movedim(1, 0)
    torch.testing.assert_close(frames @ frames.mT, 8 * torch.eye(5).double().expand(3, 5, 5))
    alone = PROBES["orthogonal"].make(z[:1])[0, 0].flatten(1)  # the first is along its normals
    cosine = torch.nn.functional.cosine_similarity(frames[:, 0], z[0].flatten(1)).abs()
    torch.testing.assert_close(cosine, torch.ones(3).double())
    torch.testing.assert_close(alone.abs(), frames[:, 0].abs())


@pytest.mark.parametrize("shape", [(8,), (5,), (1, 4, 8), (3, 4, 4), (2, 6)], ids=str)
def test_signs_of_any_two_coordinates_agree_half_of_the_time(shape):
    """Over all of them, so that their products sum to the identity."""
    signs = torch.stack(list(walsh(torch.Size(shape)))).flatten(1).double()
    assert len(signs) == math.prod(2 ** (size - 1).bit_length() for size in shape)
    assert (signs.abs() == 1).all()
    assert (signs[0] == 1).all()
    torch.testing.assert_close(signs.mT @ signs, len(signs) * torch.eye(math.prod(shape)).double())


def test_signs_of_near_pixels_decorrelate_before_distant_ones():
    """After 4^m probes, only pixels a multiple of 2^m apart along both axes have equal signs more often than not."""
    signs = torch.stack(list(walsh(torch.Size((1, 8, 8))))).flatten(1).double()
    row, column = torch.arange(64) // 8, torch.arange(64) % 8
    for m in (1, 2):
        together = signs[: 4**m].mT @ signs[: 4**m]
        apart = [(place[:, None] - place[None, :]) % 2**m == 0 for place in (row, column)]
        assert torch.equal(together, 4.0**m * (apart[0] & apart[1]).double())


def test_a_round_of_orthogonal_probes_is_exact_and_then_redrawn():
    """The sum over a whole round is exact; a redrawn round is not."""
    generator = torch.Generator().manual_seed(0)
    _, matrix = linear(torch.zeros(1, 6).double())

    def normals():
        return torch.randn(1, 3, 2, 3, dtype=torch.float64, generator=generator)

    for law, allowed in ((turned, 1e-12), (redrawn, math.inf)):
        probes = law(PROBES["rademacher"].make, normals)
        rounds = torch.stack([next(probes)[0, 0].flatten(1) for _ in range(16)]).unflatten(0, (2, 8))
        errors = torch.einsum("rnbi,ij,rnbj->rb", rounds, matrix, rounds) / 8 - matrix.trace()
        assert errors.abs().max() < allowed
        assert allowed < math.inf or errors.abs().max() > 0.1
        assert not torch.equal(rounds[0], rounds[1])


@pytest.mark.parametrize("probe", PROBES)
def test_probes_have_shape_dtype_and_unit_covariance(probe):
    z = normals(3, 50_000, 4)
    v = PROBES[probe].make(z)
    assert v.shape == (3, 1, 50_000, 4)
    assert PROBES[probe].make(z.float()).dtype == torch.float32
    for estimate in v[:, 0]:
        error = estimate.mT @ estimate / len(estimate) - torch.eye(4).double()
        assert error.abs().max() < 4 * math.sqrt(2 / len(estimate))


@pytest.mark.parametrize("num", [1, 2, 4, 6])
@pytest.mark.parametrize("probe", PROBES)
def test_random_traces_are_unbiased_and_report_the_theoretical_variance(probe, num):
    """With S the symmetric part of the Jacobian, F its squared Frobenius norm and K probes in D dimensions:

    rademacher 2 (F - sum S_ii^2) / K, gauss 2 F / K, orthogonal 2 D (F - tr^2 / D) / (D + 2) (D - K) / (K (D - 1)).
    """
    _, matrix = linear(torch.zeros(1, 6).double())
    symmetric = 0.5 * (matrix + matrix.mT)
    squared, trace = symmetric.square().sum().item(), matrix.trace().item()
    theory = {
        "rademacher": 2 * (squared - symmetric.diagonal().square().sum().item()) / num,
        "gauss": 2 * squared / num,
        "orthogonal": 2 * 6 * (squared - trace**2 / 6) / 8 * (6 - num) / (num * 5),
    }[probe]
    found = estimates(probe, num)
    assert found.shape == (COPIES, num)
    mean = found.mean(1)
    assert abs(mean.mean().item() - trace) <= 4 * math.sqrt(theory / COPIES) + 1e-12
    assert mean.var().item() == pytest.approx(theory, rel=0.05, abs=1e-20)
    told = Hutchinson(normals, num, probe).variance(found, 6)
    assert told.shape == (COPIES,)
    if num == 1:
        assert told.isnan().all()
    else:
        assert told.mean().item() == pytest.approx(theory, rel=0.05, abs=1e-20)


def test_as_many_orthogonal_probes_as_dimensions_give_the_trace():
    _, matrix = linear(torch.zeros(1, 6).double())
    found = estimates("orthogonal", 6).mean(1)
    torch.testing.assert_close(found, matrix.trace().expand(COPIES), rtol=1e-12, atol=1e-12)
    assert Hutchinson(normals, 6, "orthogonal").variance(estimates("orthogonal", 6), 6).abs().max() == 0


def test_the_exact_trace_has_no_variance():
    assert torch.equal(Exact().variance(torch.tensor([[1.0], [2.0]]), 6), torch.zeros(2))


# --- independence of the batch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [False, True], ids=["frozen", "fresh"])
@pytest.mark.parametrize("probe", PROBES)
def test_probes_depend_on_the_seed_of_an_example_alone(probe, fresh):
    """Alone, in a batch, and after others have finished, evaluation by evaluation."""
    seeds, x = torch.tensor([3, 17, 8, 5]), torch.zeros(4, *SHAPE)

    def start(rows):
        return Hutchinson(Noise(seeds[rows], stream=7), 3, probe, fresh).start(x[rows])

    whole, alone, rest = start([0, 1, 2, 3]), start([2]), start([0, 1, 2, 3])
    drawn = []
    for _ in range(4):
        together = whole(slice(None))
        drawn.append(together)
        assert together.shape == (3, 1, 4, *SHAPE)
        torch.testing.assert_close(alone(slice(None)), together[:, :, 2:3], rtol=1e-6, atol=1e-6)
        assert torch.equal(rest(torch.tensor([1, 2])), together[:, :, [1, 2]])
    assert all(torch.equal(one, other) != fresh for one, other in pairwise(drawn))
    assert len({tuple(v.flatten().tolist()) for v in together.unbind(2)}) == 4
    other = Hutchinson(Noise(seeds, stream=8), 3, probe, fresh).start(x)(slice(None))
    assert not torch.equal(other, start([0, 1, 2, 3])(slice(None)))


def test_more_probes_start_with_the_same_ones():
    """The first estimates are the same with more probes."""
    x = torch.zeros(2, *SHAPE)
    few, many = (Hutchinson(Noise(torch.arange(2)), num).start(x)(slice(None)) for num in (2, 5))
    assert torch.equal(few, many[:2])


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [0, -2])
def test_at_least_one_probe(num):
    with pytest.raises(ValueError, match=f"probes {num}: need at least 1"):
        Hutchinson(normals, num)


def test_an_unknown_kind_of_probe():
    with pytest.raises(ValueError, match="unknown probe 'hadamard'; known: rademacher, gauss, orthogonal"):
        Hutchinson(normals, 1, "hadamard")


def test_no_more_orthogonal_probes_than_dimensions():
    with pytest.raises(ValueError, match="7 orthogonal probes in 6 dimensions: need at most 6"):
        PROBES["orthogonal"].make(normals(7, 2, *SHAPE))
