"""Where on the way from data to noise to look, when the number of looks is given."""

import numpy as np

CENTRE = 0.6
SHARE = 0.93


def mixture(low: float, high: float, u: np.ndarray, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Noise-to-signal ratios r, dense where the data take shape and nowhere absent: the quantiles of a law of log r.

    The law is a mixture of a logistic one around log(CENTRE std), of weight SHARE, and a uniform one, both cut at the
    ends. Which mixture, ``benchmarks/likelihood.py`` has measured.

    Args:
        low, high: ends, 0 < low < high, exact for u = 0 and 1.
        u: shares of the law, in [0, 1].
        std: standard deviation of the data.
    Shapes: u any; returns r and d log r / du, float64, shaped as u.
    """
    ends, centre = np.log([low, high]), np.log(CENTRE * std)
    bottom, top = _logistic(ends - centre)

    def law(log_ratio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Its cumulated share and its density."""
        logistic = _logistic(log_ratio - centre)
        share, density = (logistic - bottom) / (top - bottom), logistic * (1 - logistic) / (top - bottom)
        uniform = 1 / (ends[1] - ends[0])
        return (
            SHARE * share + (1 - SHARE) * (log_ratio - ends[0]) * uniform,
            SHARE * density + (1 - SHARE) * uniform,
        )

    table = np.linspace(*ends, 2_001)
    found = np.interp(u, law(table)[0], table)
    share, density = law(found)
    found = found + (u - share) / density  # a step of Newton's, from where the table has an error of 1e-5
    ratio = np.clip(np.exp(found), low, high)
    return np.select([u == 0, u == 1], [low, high], ratio), 1 / law(found)[1]


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
