"""Processes as printed in the papers, with the papers' defaults; written without ``sde_lib``."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Process(NamedTuple):
    """Coefficients of x_t = alpha x_0 + sigma eps and dx = f x dt + g dw at some times."""

    alpha: np.ndarray
    sigma: np.ndarray
    f: np.ndarray
    g: np.ndarray

    @property
    def log_snr(self) -> np.ndarray:
        log_ratio: np.ndarray = np.log(self.alpha / self.sigma)
        return 2 * log_ratio


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


def rectified(t: np.ndarray) -> Process:
    """Liu et al., 2022: a straight path with velocity eps - x0."""
    return Process(1 - t, t, -1 / (1 - t), np.sqrt(2 * t / (1 - t)))


def preserving(kept: np.ndarray, lost: np.ndarray, rate: np.ndarray) -> Process:
    """Variance-preserving: alpha^2 = kept, sigma^2 = lost, -d alpha^2 / dt / alpha^2 = g^2 = rate."""
    return Process(np.sqrt(kept), np.sqrt(lost), -rate / 2, np.sqrt(rate))


def sigmoid(t: np.ndarray) -> Process:
    """Jabri et al., 2022: alpha^2 falls like a sigmoid from -3 to 3; its differences are written with sinh."""
    u = 6 * t - 3
    whole, left, gone = math.sinh(3), np.sinh(3 * (1 - t)), np.sinh(3 * t)
    kept, lost = (part * math.cosh(1.5) / (whole * np.cosh(u / 2)) for part in (left, gone))
    return preserving(kept, lost, 3 * math.cosh(1.5) / (np.cosh(u / 2) * left))


def laplace(t: np.ndarray) -> Process:
    """Hang et al., 2024: log-SNR = 0 - 1 sgn(1/2 - t) log(1 - 2 |1/2 - t|); alpha^2 = 1 / (1 + 2 t) below t = 1/2."""
    near, far = 1 / (1 + 2 * np.minimum(t, 1 - t)), 2 * np.minimum(t, 1 - t) / (1 + 2 * np.minimum(t, 1 - t))
    kept, lost = np.where(t < 0.5, near, far), np.where(t < 0.5, far, near)
    return preserving(kept, lost, lost / np.minimum(t, 1 - t))


def logistic(t: np.ndarray) -> Process:
    """Log-SNR = 0 - 2 log(t / (1 - t)): ``rectified`` divided by sqrt(alpha^2 + sigma^2)."""
    square = t**2 + (1 - t) ** 2
    return preserving((1 - t) ** 2 / square, t**2 / square, 2 * t / ((1 - t) * square))


def chain(log_alpha: np.ndarray, sigma: np.ndarray, t: np.ndarray) -> Process:
    """Discrete-time process of levels 1 to N.

    log alpha and log sigma are linear between levels; drift and diffusion follow from the slope to the next level.
    """
    levels, log_sigma = np.arange(1, len(sigma) + 1), np.log(sigma)
    at = np.clip(np.floor(t).astype(int), 1, len(sigma) - 1) - 1
    f, noise = np.diff(log_alpha)[at], np.diff(log_sigma)[at]
    s = np.exp(np.interp(t, levels, log_sigma))
    return Process(np.exp(np.interp(t, levels, log_alpha)), s, f, s * np.sqrt(2 * (noise - f)))


def betas(beta: np.ndarray, t: np.ndarray) -> Process:
    """Ho et al., 2020: alpha^2 is the cumulative product of 1 - beta."""
    log_square = np.cumsum(np.log1p(-beta))
    return chain(log_square / 2, np.sqrt(-np.expm1(log_square)), t)


def ddpm(t: np.ndarray) -> Process:
    """Ho et al., 2020, section 4: beta from 1e-4 to 0.02."""
    return betas(np.linspace(1e-4, 0.02, 1000), t)


def iddpm(t: np.ndarray) -> Process:
    """Nichol, Dhariwal, 2021, eq. 17: offset 0.008, beta at most 0.999; cos^2 a - cos^2 b = sin(b - a) sin(b + a)."""
    i, step = np.arange(1000), math.pi / 2 / 1008
    beta = math.sin(step) * np.sin((2 * i + 17) * step) / np.sin((1000 - i) * step) ** 2
    return betas(np.minimum(beta, 0.999), t)


def ncsn(t: np.ndarray) -> Process:
    """Song, Ermon, 2020: 232 levels in geometric progression from 0.01 to 50."""
    return chain(np.zeros(232), np.geomspace(0.01, 50, 232), t)


PROCESSES: dict[str, Callable[[np.ndarray], Process]] = {
    "vpsde": vp,
    "subvpsde": subvp,
    "vesde": ve,
    "cosine": cosine,
    "edm": edm,
    "rectified": rectified,
    "sigmoid": sigmoid,
    "laplace": laplace,
    "logistic": logistic,
    "ddpm": ddpm,
    "iddpm": iddpm,
    "ncsn": ncsn,
}

PRIOR_STD = dict.fromkeys(PROCESSES, 1.0) | {"vesde": 50.0, "edm": 80.0, "rectified": 0.999, "ncsn": 50.0}
INTERVALS = {
    "vpsde": (1e-5, 1.0),
    "subvpsde": (1e-5, 1.0),
    "vesde": (1e-5, 1.0),
    "cosine": (1e-5, 0.995),
    "edm": (0.002, 80.0),
    "rectified": (1e-5, 0.999),
    "sigmoid": (1e-5, 0.9995),
    "laplace": (1e-5, 0.9995),
    "logistic": (1e-5, 0.999),
    "ddpm": (1.0, 1000.0),
    "iddpm": (1.0, 1000.0),
    "ncsn": (1.0, 232.0),
}
