"""The toolkit as a contender of benchmarks/speed.py: its trainer, sampler and flow, and their parts."""

import tempfile
import warnings
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.overhead import Instant
from score_sde.data import Dataset
from score_sde.engine.config import load
from score_sde.engine.inference import frozen
from score_sde.engine.malloc import keep_freed
from score_sde.engine.training.trainer import Trainer
from score_sde.samplers import GRIDS, NOISES, STEPS, Noise, sample
from score_sde.samplers.brownian import brownian_path
from score_sde.sde_lib import Flow, Gaussian, Hutchinson
from score_sde.sde_lib.likelihood import TracedFlow

MOVES = 32


class Toolkit:
    """A run of DDPM++ on random images. Each action does its work and returns the number of repetitions.

    Args:
        options: batch, channels, blocks, precision, device, threads, moves; optionally compile, channels_last,
            inference (the dtype of the trained network) and compiled.
        images: (N, *) uint8.
    """

    def __init__(self, options: Mapping[str, Any], images: np.ndarray) -> None:
        keep_freed()  # as run.py does
        config = load("cifar10_ddpmpp_vp")
        config.device, config.threads = options["device"], options["threads"]
        config.network.channels, config.network.num_blocks = options["channels"], options["blocks"]
        config.train.batch_size, config.train.precision = options["batch"], options["precision"]
        config.train.compile = options.get("compile", "false")
        dataset = Dataset(images, np.arange(len(images)), levels=256)
        self.trainer = Trainer(config, Path(tempfile.mkdtemp()), dataset)
        if options.get("channels_last"):
            self.trainer.network.to(memory_format=torch.channels_last)
        experiment, self.steps = self.trainer.experiment, self.trainer.steps(10**9)
        self.sde, self.device, self.moves = experiment.sde, experiment.device, options["moves"]
        self.x = torch.randn(options["batch"], *images.shape[1:], device=self.device)
        self.seeds = torch.arange(options["batch"])
        self.network = self.trainer.ema.networks[0]
        dtype = getattr(torch, options.get("inference", "float32"))
        used = frozen(self.network, dtype, options.get("compiled", False))
        self.denoise = experiment.denoiser(used, config)
        self.instant = experiment.denoiser(Instant(), config)
        self.gaussian = Gaussian.standard(self.x)

    def actions(self) -> dict[str, Callable[[], float]]:
        """Returns the actions by the names of the tables."""
        return {
            "train": self.train,
            "bare step": self.bare,
            "waits": self.waits,
            "forward": self.forward,
            "sample": lambda: self.draw(self.denoise, self.moves) + 1,  # one more evaluation, the last denoising
            "one probe": lambda: self.traced(1),
            "four probes": lambda: self.traced(4),
            "move of ddim": lambda: self.draw(self.instant, MOVES, "ddim"),
            "move of euler_maruyama": lambda: self.draw(self.instant, MOVES),
            "evaluation of ode": self.solve,
            "of these, the denoiser": self.evaluations,
            "evaluation of scipy's RK45, the denoiser included": self.scipy,
            "Brownian increment": self.path,
            "increment of torchsde's BrownianTree": self.tree,
            "Brownian motion at any time": self.motion,
            "torch.randn": self.randn,
        }

    def train(self) -> float:
        """A training step."""
        next(self.steps)
        return 1

    def bare(self) -> float:
        """Forward and backward of the network, without the rest of a training step."""
        precision = self.trainer.precision
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            self.trainer.network(self.x, self.labels()).float().square().mean().backward()
        self.trainer.optimizer.zero_grad()
        return 1

    def labels(self) -> Tensor:
        """Returns the noise conditioning of the network, constant."""
        return torch.full((len(self.x),), 500.0, device=self.device)

    def waits(self) -> float:
        """A training step; returns how often the host waits for the device, by torch's sync debug mode."""
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            if self.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
            next(self.steps)
            if self.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in found)

    def forward(self) -> float:
        """A forward of the averaged network."""
        with torch.no_grad():
            self.network(self.x, self.labels())
        return 1

    def draw(self, denoise: Callable, moves: int, name: str = "euler_maruyama", noise: str = "independent") -> float:
        """Sampling by a step in this many moves."""
        with torch.no_grad():
            times = GRIDS["uniform"](self.sde, moves)
            sample(STEPS[name](self.sde), denoise, self.sde.prior_std * self.x, times, NOISES[noise](self.seeds))
        return moves

    def traced(self, probes: int) -> float:
        """An evaluation of the flow with an estimate of its divergence."""
        trace = Hutchinson(Noise(self.seeds), probes)
        TracedFlow(Flow(self.sde, self.denoise, self.gaussian), trace.start(self.x))(0.7, self.x)
        return 1

    def solve(self) -> float:
        """The sampler ``ode`` on a network that takes no time; returns its evaluations."""
        calls = 0

        def counted(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            return self.instant(*args)

        self.draw(counted, 1, "ode")
        return calls

    def evaluations(self) -> float:
        """Evaluations of the denoiser of ``solve`` alone, with a time per example."""
        times = torch.linspace(0.1, 0.9, len(self.x), device=self.device).reshape(-1, *[1] * (self.x.ndim - 1))
        with torch.no_grad():
            for _ in range(MOVES):
                self.instant(self.x, times)
        return MOVES

    def scipy(self) -> float:
        """The probability flow by scipy's RK45 on a network that takes no time; returns its evaluations."""
        from scipy.integrate import solve_ivp

        sde = self.sde

        def rate(t: float, state: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(state).float().reshape(self.x.shape)
            score = sde.score(x, self.instant(x, t).x0, t)
            return (sde.drift(t) * x - 0.5 * sde.diffusion(t) ** 2 * score).flatten().numpy()

        with torch.no_grad():
            start = (sde.prior_std * self.x).flatten().numpy()
            return solve_ivp(rate, (sde.t_max, sde.t_min), start, rtol=1e-4, atol=1e-4).nfev

    def path(self) -> float:
        """Increments of a Brownian path."""
        noise = NOISES["brownian"](self.seeds)
        for move in noise.moves(MOVES):
            move(self.x)
        return MOVES

    def tree(self) -> float:
        """Increments of torchsde's BrownianTree, at the noise levels of a grid as in k-diffusion."""
        from torchsde import BrownianTree

        sigmas = (GRIDS["karras"](self.sde, MOVES) / self.sde.t_max).tolist()
        path = BrownianTree(0.0, torch.zeros_like(self.x), 1.0, entropy=0)
        for late, early in pairwise(sigmas):
            path(early, late)
        return MOVES

    def motion(self) -> float:
        """Brownian motion at arbitrary times."""
        brownian_path(self.seeds, 100 * self.seeds % (1 << 16), self.x)
        return 1

    def randn(self) -> float:
        """Normals of torch's generator."""
        for _ in range(MOVES):
            torch.randn_like(self.x)
        return MOVES
