"""Averages of the weights against the explicit recursion; buffers are excluded."""

import pytest
import torch
from torch import nn

from score_sde.engine.training.ema import EMA


class Counter(nn.Module):
    """Weights, a table of reals and an integer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        self.register_buffer("table", torch.tensor([0.5]))
        self.register_buffer("count", torch.tensor(0))


def follow(network, ema, num, dtype=torch.float64):
    """Changes the weights at random ``num`` times and returns their path, including the start."""
    generator = torch.Generator().manual_seed(0)
    path = [network.weight.detach().to(dtype)]
    for step in range(num):
        with torch.no_grad():
            network.weight += torch.randn(3, generator=generator).to(network.weight.dtype)
            network.table.fill_(step)
            network.count += 1
        ema.update()
        path.append(network.weight.detach().to(dtype))
    return path


def averaged(path, rate, warmup):
    """The recursion in float64."""
    average = path[0]
    for n, weights in enumerate(path[1:]):
        kept = min(rate, (1 + n) / (10 + n)) if warmup else rate
        average = kept * average + (1 - kept) * weights
    return average


@pytest.mark.parametrize("warmup", [True, False])
def test_the_recursion_for_several_rates(warmup):
    network, rates = Counter(), (0.0, 0.5, 0.9, 0.999)
    ema = EMA(network, rates, warmup)
    path = follow(network, ema, 30)
    assert ema.num_updates == 30
    for rate, average in zip(rates, ema.networks):
        torch.testing.assert_close(average.weight.double(), averaged(path, rate, warmup), rtol=1e-5, atol=1e-5)


def test_warmup_forgets_the_start():
    """After n updates at most prod (1 + k) / (10 + k) of the start is left; without warm-up it is rate^n."""
    network = Counter()
    warm, cold = EMA(network, (0.999,)), EMA(network, (0.999,), warmup=False)
    with torch.no_grad():
        network.weight.zero_()
    for _ in range(50):
        warm.update()
        cold.update()
    start = torch.tensor([1.0, -2.0, 3.0])
    assert warm.networks[0].weight.abs().max() < 1e-5
    torch.testing.assert_close(cold.networks[0].weight, 0.999**50 * start)


def test_a_resumed_average_equals_that_of_one_run():
    network = Counter()
    whole = EMA(network, (0.9,))
    first = EMA(network, (0.9,))
    for step in range(20):
        with torch.no_grad():
            network.weight += 1
        whole.update()
        if step == 9:
            second = EMA(network, (0.9,))
            second.networks[0].load_state_dict(first.networks[0].state_dict())
            second.num_updates = first.num_updates
            first = second
        first.update()
    assert torch.equal(whole.networks[0].weight, first.networks[0].weight)


def test_the_distance_is_relative_to_the_first_average():
    """Over all weights together: |(3, 4) - (0, 8)| / |(0, 8)|, with another average that does not count."""
    network = nn.ParameterList([torch.tensor([3.0]), torch.tensor([4.0])])
    ema = EMA(network, (0.9, 0.5))
    for parameter, value in zip(ema.networks[0].parameters(), (0.0, 8.0), strict=True):
        parameter.data.fill_(value)
    assert ema.distance().item() == pytest.approx(5 / 8)


def test_buffers_are_copied():
    network = Counter()
    ema = EMA(network, (0.9, 0.99))
    follow(network, ema, 7)
    for average in ema.networks:
        assert average.table.item() == 6
        assert average.count.item() == 7
        assert average.count.dtype == torch.int64


def test_averages_of_bfloat16_weights_are_kept_in_float32():
    """Steps of 1 / 1,000 of a weight near 1 vanish in bfloat16, whose spacing there is 1 / 128."""
    network = Counter().bfloat16()
    ema = EMA(network, (0.999,), warmup=False)
    path = follow(network, ema, 30)
    average = ema.networks[0].weight
    assert network.weight.dtype == torch.bfloat16
    assert average.dtype == torch.float32
    torch.testing.assert_close(average.double(), averaged(path, 0.999, False), rtol=1e-5, atol=1e-6)


def test_the_network_and_its_averages_share_no_memory():
    network = Counter()
    ema = EMA(network, (0.5,))
    before = network.weight.clone()
    with torch.no_grad():
        ema.networks[0].weight.zero_()
        ema.networks[0].table.zero_()
    assert torch.equal(network.weight, before)
    assert network.table.item() == 0.5


def test_averages_take_no_gradient_and_do_not_drop():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    average = EMA(network, (0.5,)).networks[0]
    assert not average.training
    assert not any(p.requires_grad for p in average.parameters())
    assert all(p.requires_grad for p in network.parameters())
    assert network.training


@pytest.mark.parametrize("rates", [(), (1.0,), (1.5,), (-0.1,), (0.9, 2.0)])
def test_rates_out_of_range_are_refused(rates):
    with pytest.raises(ValueError, match=r"ema\.rates .* need one or more rates from 0 to below 1"):
        EMA(Counter(), rates)
