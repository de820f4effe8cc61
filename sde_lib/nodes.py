"""Nodes between data and noise for a given number of evaluations."""

import numpy as np

CENTRE, WEIGHT = 0.6, 0.93
TRACE_CENTRE, TRACE_WEIGHT = 0.7, 0.87
EDGE_WIDTH = 0.5  # scale in log r of the logistic law at the low end


def logistic_uniform(
    low: float,
    high: float,
    u: np.ndarray,
    std: float,
    middle: float = CENTRE,
    weight: float = WEIGHT,
    edge: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Noise-to-signal ratios r at quantiles of a distribution of log r, dense where the structure of the data forms.

    The law of log r mixes a logistic law around log(middle std), of weight ``weight``, with a uniform one, both
    truncated at the ends. The defaults were measured with ``benchmarks/likelihood.py``. The fraction ``edge`` of the
    nodes follows half a logistic law at the low end, for a flow that moves fast there.

    Args:
        low, high: ends, 0 < low < high, exact for u = 0 and 1.
        u: probabilities, in [0, 1].
        std: standard deviation of the data.
        middle, weight: centre and weight of the logistic component, positive and in [0, 1].
        edge: weight of the component at the low end, in [0, 1).
    Shapes: u any; returns r and d log r / du, float64, shaped as u.
    """
    ends, centre = np.log([low, high]), np.log(middle * std)

    def cut(log_ratio: np.ndarray, centre: float, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Cumulative distribution and density of the truncated logistic law."""
        bottom, top = _logistic((ends - centre) / width)
        logistic = _logistic((log_ratio - centre) / width)
        return (logistic - bottom) / (top - bottom), logistic * (1 - logistic) / (top - bottom) / width

    def law(log_ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cumulative distribution and density of the mixture."""
        (bump, density), uniform = cut(log_ratio, centre, 1.0), 1 / (ends[1] - ends[0])
        below = weight * bump + (1 - weight) * (log_ratio - ends[0]) * uniform
        first, steep = cut(log_ratio, ends[0], EDGE_WIDTH)
        return (
            (1 - edge) * below + edge * first,
            (1 - edge) * (weight * density + (1 - weight) * uniform) + edge * steep,
        )

    table = np.linspace(ends[0], ends[1], 2_001)
    found = np.interp(u, law(table)[0], table)
    reached, density = law(found)
    found = found + (u - reached) / density  # a Newton step from the table's error of 1e-5
    ratio = np.clip(np.exp(found), low, high)
    return np.select([u == 0, u == 1], [low, high], ratio), 1 / law(found)[1]


def nested(low: float, high: float, num: int, traces: int, edge: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Angles atan r of ``num`` nodes of a path, and the indices of the ``traces`` nodes with a trace.

    The trace and the path vary at different noise levels. If traces < num, the nodes with a trace are quantiles of a
    separate ``logistic_uniform``, and the other nodes divide the gaps between them according to the path's.

    Args:
        low, high: ends, as angles in (0, pi / 2), included exactly.
        num, traces: numbers of nodes, 2 <= traces <= num.
        edge: weight of the component of ``logistic_uniform`` at the low end.
    Shapes: returns (num,) increasing float64 and (traces,) int64, ends included.
    """
    (near, far), marked = np.tan([low, high]), np.arange(num)
    shares = np.linspace(0, 1, num)
    if traces < num:
        wanted = logistic_uniform(near, far, np.linspace(0, 1, traces), 1.0, TRACE_CENTRE, TRACE_WEIGHT, edge)[0]
        table = np.linspace(0, 1, 2_001)
        stops = np.interp(np.log(wanted), np.log(logistic_uniform(near, far, table, 1.0, edge=edge)[0]), table)
        moves = np.ones(traces - 1, dtype=int)
        for _ in range(num - traces):
            moves[np.argmax(np.diff(stops) / moves)] += 1
        marked = np.append(0, np.cumsum(moves))
        shares = np.interp(np.arange(num), marked, stops)
    angles = np.arctan(logistic_uniform(near, far, shares, 1.0, edge=edge)[0])
    angles[[0, -1]] = low, high
    return angles, marked


def _logistic(x: np.ndarray) -> np.ndarray:
    logistic: np.ndarray = 1 / (1 + np.exp(-x))
    return logistic
