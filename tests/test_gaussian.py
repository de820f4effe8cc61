"""The moment-matched Gaussian against numpy's covariance, dense matrices and the exact mixture of one component."""

import math

import numpy as np
import pytest
import torch

from score_sde.sde_lib import Gaussian, GaussianMixture

RATIOS = {"number": 0.3, "each": torch.tensor([[0.01], [0.3], [2.0], [40.0], [0.7]], dtype=torch.float64)}


def normals(*shape, seed=0):
    """Standard normals in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(gaussian):
    """C, (D, D)."""
    along = gaussian.directions @ gaussian.directions.mT
    spread = (gaussian.directions * gaussian.variances) @ gaussian.directions.mT
    return spread + gaussian.rest * (torch.eye(len(along), dtype=along.dtype) - along)


def function_of(matrix, function):
    """function(matrix) for symmetric matrices (..., D, D), by eigendecomposition."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * function(values)[..., None, :]) @ vectors.mT


def times(matrix, z):
    """A matrix, or one for each row, times each row of z (B, *)."""
    return (matrix @ z.flatten(1)[..., None]).reshape(z.shape)


def covariance(x, extra=0.0):
    """Covariance of examples (N, *) by numpy."""
    flat = x.flatten(1).double().numpy()
    return torch.from_numpy(np.cov(flat.T, bias=True).reshape(2 * flat.shape[1:]) + extra * np.eye(flat.shape[1]))


def with_spectrum(values, num, seed=0):
    """Draws of a Gaussian whose covariance has these eigenvalues, in random directions."""
    turn = torch.linalg.qr(normals(len(values), len(values), seed=seed)).Q
    return (normals(num, len(values), seed=seed + 1) * values.sqrt()) @ turn + 2.0


@pytest.fixture(params=[((3,), 0), ((2,), 2), ((3, 4), 5), ((1, 2, 3), 6), ((2, 3, 2), 1)], ids=str)
def gaussian(request):
    """Gaussians on examples of every rank, with no, some and all directions resolved."""
    shape, rank = request.param
    directions = torch.linalg.qr(normals(math.prod(shape), rank, seed=1)).Q
    return Gaussian(normals(*shape, seed=2), 0.2, torch.linspace(0.5, 3, rank, dtype=torch.float64), directions)


@pytest.fixture(params=RATIOS)
def ratio(request):
    return RATIOS[request.param]


def noisy(gaussian, ratio):
    """C + r^2, or one for each example."""
    square = torch.as_tensor(ratio, dtype=torch.float64).square()
    return dense(gaussian) + square[..., None] * torch.eye(gaussian.mean.numel(), dtype=torch.float64)


def places(gaussian):
    """Five test points."""
    return 2 * normals(5, *gaussian.mean.shape, seed=3)


# --- measured on examples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 5), (2, 3, 2), (1, 8, 8)], ids=str)
@pytest.mark.parametrize("extra", [0.0, 0.01])
def test_up_to_64_dimensions_it_has_the_covariance_of_the_examples(shape, extra):
    x = with_spectrum(torch.logspace(0, -3, math.prod(shape), dtype=torch.float64), 1300).reshape(1300, *shape)
    found = Gaussian.of(x, extra)
    torch.testing.assert_close(found.mean, x.mean(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(dense(found), covariance(x, extra), rtol=0, atol=1e-12)
    assert found.mean.shape == shape


@pytest.mark.parametrize(("dimensions", "num"), [(90, 1200), (300, 1200), (300, 200), (1000, 600)])
def test_above_64_dimensions_it_finds_the_leading_directions_and_keeps_all_the_variance(dimensions, num):
    """In 90 dimensions the subspace is the whole space, so the directions are optimal."""
    x = with_spectrum(torch.arange(1, dimensions + 1, dtype=torch.float64) ** -1.5, num)
    found, true = Gaussian.of(x), covariance(x)
    rank, values = min(64, num // 8), torch.linalg.eigvalsh(true).flip(0)
    assert found.variances.shape == (rank,)
    identity = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(found.directions.mT @ found.directions, identity, rtol=0, atol=1e-12)
    within = found.directions.mT @ true @ found.directions
    torch.testing.assert_close(within, torch.diag(found.variances), rtol=0, atol=1e-12)
    assert found.trace(lambda v: v) == pytest.approx(true.trace().item(), rel=1e-12)
    tolerance = 1e-12 if dimensions == 90 else 0.003
    assert found.variances.sum().item() == pytest.approx(values[:rank].sum().item(), rel=tolerance)
    torch.testing.assert_close(found.variances.flip(0)[:8], values[:8], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("num", "rank"), [(1, 0), (7, 0), (8, 1), (39, 4), (79, 9), (81, 10), (1000, 10)])
def test_few_examples_resolve_few_directions(num, rank):
    x = normals(num, 10)
    found = Gaussian.of(x, 0.01)
    assert found.variances.shape == (rank,)
    assert found.directions.shape == (10, rank)
    assert found.trace(lambda v: v) == pytest.approx((x - x.mean(0)).square().sum().item() / num + 0.1, rel=1e-5)


@pytest.mark.parametrize("num", [20, 40, 80])
def test_few_examples_leave_variance_for_new_ones(num):
    """New examples are likelier, in nats, than with no direction resolved or with half as many as examples."""
    x = with_spectrum(torch.arange(1, 65, dtype=torch.float64) ** -1.5, num + 1000)
    seen, others = x[:num], x[num:]

    def log_prob(found):
        return -0.5 * found.whiten(others, 0.0).square().sum(1).mean().item() - found.log_volume(0.0)

    found, rank = Gaussian.of(seen), num // 2
    values, vectors = torch.linalg.eigh(covariance(seen))
    many = Gaussian(found.mean, values[:-rank].mean().item(), values[-rank:], vectors[:, -rank:])
    none = Gaussian(found.mean, found.std**2)
    assert many.std == pytest.approx(found.std, rel=1e-9)
    assert log_prob(found) > max(log_prob(none), log_prob(many)) + 5


def test_no_variance_is_below_a_millionth_of_the_mean_variance():
    """Examples on a line in space."""
    line = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64) / 3
    found = Gaussian.of(normals(200, 1) * line)
    mean = covariance(normals(200, 1)).item() / 3
    torch.testing.assert_close(found.variances, torch.tensor([1e-6, 1e-6, 3], dtype=torch.float64) * mean)
    torch.testing.assert_close(found.directions[:, -1].abs(), line[0])
    images = normals(200, 1) * torch.ones(1, 100, dtype=torch.float64)
    assert Gaussian.of(images).rest == pytest.approx(1e-6 * covariance(normals(200, 1)).item(), rel=1e-9)


@pytest.mark.parametrize(("extra", "variance"), [(0.0, 1e-6), (0.25, 0.25)])
@pytest.mark.parametrize("num", [1, 2, 50])
def test_identical_examples_have_a_gaussian(num, extra, variance):
    found = Gaussian.of(torch.full((num, 2, 3), 0.7), extra)
    torch.testing.assert_close(found.mean, torch.full((2, 3), 0.7).double())
    torch.testing.assert_close(dense(found), variance * torch.eye(6).double(), rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_numbers_of_any_type_are_measured_in_float64(dtype):
    """Sums in float32 of numbers far from 0 would not give these variances."""
    x = (10 * with_spectrum(torch.logspace(1, -1, 80, dtype=torch.float64), 700) + 100).clamp(0, 255).to(dtype)
    found, same = Gaussian.of(x), Gaussian.of(x.double())
    assert {value.dtype for value in found.state_dict().values()} == {torch.float64}
    torch.testing.assert_close(found.mean, same.mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(dense(found), dense(same), rtol=0, atol=1e-4 * found.std**2)
    torch.testing.assert_close(found.variances, same.variances, rtol=1e-10, atol=0)


def test_the_result_is_deterministic_and_uses_no_random_number():
    x = normals(300, 2, 50)
    before = torch.get_rng_state()
    one, other = (Gaussian.of(x).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(torch.get_rng_state(), before)


# --- as a matrix ------------------------------------------------------------------------------------------------------


def test_whiten_and_colour_are_roots_of_the_covariance_with_noise(gaussian, ratio):
    y = places(gaussian)
    root = function_of(noisy(gaussian, ratio), torch.sqrt)
    expected = times(torch.linalg.inv(root), y - gaussian.mean)
    torch.testing.assert_close(gaussian.whiten(y, ratio), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gaussian.colour(y, ratio), gaussian.mean + times(root, y), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gaussian.colour(gaussian.whiten(y, ratio), ratio), y, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ratio", [1e-3, 0.3, 50.0])
def test_whitened_data_have_unit_covariance_at_every_noise(gaussian, ratio):
    """W (C + r^2) W^T = I for the matrix W of ``whiten``."""
    axes = torch.eye(gaussian.mean.numel(), dtype=torch.float64).reshape(-1, *gaussian.mean.shape)
    matrix = gaussian.whiten(gaussian.mean + axes, ratio).flatten(1).mT
    found = matrix @ noisy(gaussian, ratio) @ matrix.mT
    torch.testing.assert_close(found, torch.eye(len(axes), dtype=torch.float64), rtol=0, atol=1e-11)


def test_draws_of_the_mixture_are_white_after_whiten(gaussian):
    mixture = GaussianMixture.of_covariances(torch.ones(1).double(), gaussian.mean[None], dense(gaussian)[None])
    x0 = mixture.sample(20_000, torch.Generator().manual_seed(0))
    u = gaussian.whiten(x0 + 0.3 * normals(*x0.shape, seed=4), 0.3)
    torch.testing.assert_close(covariance(u), torch.eye(gaussian.mean.numel()).double(), rtol=0, atol=0.05)
    torch.testing.assert_close(u.mean(0), torch.zeros_like(gaussian.mean), rtol=0, atol=0.04)


def test_the_posterior_mean_matches_a_mixture_of_one(gaussian, ratio):
    mixture = GaussianMixture.of_covariances(torch.ones(1).double(), gaussian.mean[None], dense(gaussian)[None])
    y, sigma = places(gaussian), ratio
    if isinstance(ratio, torch.Tensor):
        sigma = ratio.reshape(-1, *[1] * gaussian.mean.ndim)
    expected = mixture.posterior_mean(y, 1.0, sigma)
    torch.testing.assert_close(gaussian.posterior_mean(y, ratio), expected, rtol=1e-10, atol=1e-12)


def test_log_volume_is_half_the_log_determinant(gaussian, ratio):
    found, expected = gaussian.log_volume(ratio), 0.5 * torch.linalg.slogdet(noisy(gaussian, ratio)).logabsdet
    assert isinstance(found, torch.Tensor if isinstance(ratio, torch.Tensor) else float)
    torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float64), expected, rtol=1e-11, atol=1e-11)


def test_traces_and_products_of_any_function(gaussian, ratio):
    y, square = places(gaussian), torch.as_tensor(ratio, dtype=torch.float64).square()
    matrix = function_of(dense(gaussian).expand(*square.shape[:1], -1, -1), lambda v: (v / (v + square)) ** 2)
    found = gaussian.trace(lambda v: (v / (v + ratio**2)) ** 2)
    expected = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(torch.as_tensor(found, dtype=torch.float64), expected, rtol=1e-11, atol=0)
    found = gaussian.apply(lambda v: (v / (v + ratio**2)) ** 2, y)
    torch.testing.assert_close(found, times(matrix, y), rtol=1e-10, atol=1e-12)
    assert gaussian.std == pytest.approx(math.sqrt(dense(gaussian).trace().item() / y[0].numel()), rel=1e-12)


def test_the_jacobian_of_the_posterior_mean_is_its_matrix(gaussian):
    """Also with many products at once, as in the trace of a flow."""
    y = places(gaussian)[:1].requires_grad_()
    axes = torch.eye(y.numel(), dtype=torch.float64).reshape(-1, *y.shape)
    (found,) = torch.autograd.grad(gaussian.posterior_mean(y, 0.3), y, axes, is_grads_batched=True)
    expected = function_of(dense(gaussian), lambda v: v / (v + 0.09))
    torch.testing.assert_close(found.flatten(1), expected, rtol=1e-10, atol=1e-12)


def test_like_follows_the_data(gaussian, ratio):
    y = places(gaussian)
    single = gaussian.like(y.float())
    each = ratio.float() if isinstance(ratio, torch.Tensor) else ratio
    for name in ("whiten", "colour", "posterior_mean"):
        found, expected = getattr(single, name)(y.float(), each), getattr(gaussian, name)(y, ratio)
        assert found.dtype == torch.float32
        assert found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert single.std == pytest.approx(gaussian.std, rel=1e-6)
    torch.testing.assert_close(single.log_volume(ratio), gaussian.log_volume(ratio), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(2,), (3, 4), (1, 2, 3)])
def test_the_standard_one_is_the_prior_of_unit_noise(shape):
    x = normals(4, *shape)
    found = Gaussian.standard(x)
    torch.testing.assert_close(found.whiten(x, 0.5), x / math.sqrt(1.25))
    torch.testing.assert_close(found.posterior_mean(x, 0.5), x / 1.25)
    assert found.std == 1
    assert found.log_volume(0.0) == 0


def test_the_state_restores_the_gaussian(gaussian):
    again, y = Gaussian.from_state_dict(gaussian.state_dict()), places(gaussian)
    assert torch.equal(again.colour(y, 0.3), gaussian.colour(y, 0.3))
    assert torch.equal(again.mean, gaussian.mean)
    assert {value.dtype for value in gaussian.state_dict().values()} == {torch.float64}
