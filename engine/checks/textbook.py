"""The processes as the papers print them, with the defaults of the papers; written without ``sde_lib``."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Process(NamedTuple):
    """x_t = alpha x_0 + sigma eps and dx = f x dt + g dw at some times."""

    alpha: np.ndarray
    sigma: np.ndarray
    f: np.ndarray
    g: np.ndarray

    @property
    def log_snr(self) -> np.ndarray:
        return 2 * np.log(self.alpha / self.sigma)


def vp(t: np.ndarray) -> Process:
    """Song et al., 2021, eq. 32, 33: beta from 0.1 to 20."""
    rate, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2
    return Process(np.exp(-integral / 2), np.sqrt(-np.expm1(-integral)), -rate / 2, np.sqrt(rate))


def subvp(t: np.ndarray) -> Process:
    """Song et al., 2021, eq. 28, 29: beta from 0.1 to 20."""
    rate, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2
    g = np.sqrt(rate * -np.expm1(-2 * integral))
    return Process(np.exp(-integral / 2), -np.expm1(-integral), -rate / 2, g)


def ve(t: np.ndarray) -> Process:
    """Song et al., 2021, eq. 30, 31: sigma from 0.01 to 50."""
    sigma = 0.01 * 5000**t
    return Process(np.ones_like(t), sigma, np.zeros_like(t), sigma * math.sqrt(2 * math.log(5000)))


def edm(t: np.ndarray) -> Process:
    """Karras et al., 2022, table 1: sigma from 0.002 to 80."""
    return Process(np.ones_like(t), t, np.zeros_like(t), np.sqrt(2 * t))


def cosine(t: np.ndarray) -> Process:
    """Nichol, Dhariwal, 2021, eq. 17: offset 0.008."""
    speed, start = math.pi / 2 / 1.008, math.pi / 2 * 0.008 / 1.008
    angle = start + speed * t
    sigma = np.sqrt(np.sin(angle) ** 2 - math.sin(start) ** 2) / math.cos(start)
    rate = 2 * speed * np.tan(angle)
    return Process(np.cos(angle) / math.cos(start), sigma, -rate / 2, np.sqrt(rate))


PROCESSES: dict[str, Callable[[np.ndarray], Process]] = {
    "vpsde": vp,
    "subvpsde": subvp,
    "vesde": ve,
    "cosine": cosine,
    "edm": edm,
}

PRIOR_STD = {"vpsde": 1.0, "subvpsde": 1.0, "vesde": 50.0, "cosine": 1.0, "edm": 80.0}
INTERVALS = {
    "vpsde": (1e-5, 1.0),
    "subvpsde": (1e-5, 1.0),
    "vesde": (1e-5, 1.0),
    "cosine": (1e-5, 0.995),
    "edm": (0.002, 80.0),
}
