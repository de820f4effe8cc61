"""EDM: preconditioning, losses and the sampler."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from parity.recordings import Comparison, Group, Recording, column, gaussian, parameters, per_sample, replay
from parity.score_sde import zeros
from samplers import DDIM, GRIDS, Heun, sample
from samplers.churn import Churn
from sde_lib import EDMSDE, VESDE, VPSDE, WEIGHTS, Denoiser, denoising_loss

LOSSES = {
    "vp": (VPSDE(0.1, 20.0, t_min=1e-5), lambda rnd: 1 + rnd * (1e-5 - 1), WEIGHTS["simple"]),
    "ve": (VESDE(0.02, 100.0, t_min=0.0), lambda rnd: rnd, WEIGHTS["simple"]),
    "edm": (EDMSDE(), lambda rnd: torch.exp(1.2 * rnd - 1.2), partial(WEIGHTS["edm"], sigma_data=0.5)),
}
"""The three published losses: process, time of the recorded random number, weight on the error of the data."""

PRECONDITIONING = {"EDMPrecond": (EDMSDE(), "edm", 0.5), "VPPrecond": (VPSDE(0.1, 20.0), "eps", 1.0)}
"""The published wrappers: process, parameterization, sigma_data."""


class Answer(nn.Module):
    """A network that gives the recorded answer, and keeps what it was asked."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        self.x, self.log_snr = x, log_snr
        return self.output


def preconditioning(recording: Recording) -> Iterator[Comparison]:
    """What goes into the network and what is made of its output; the VP state is alpha times theirs."""
    name = parameters(recording.name.replace("/io", "/config"))["precond"]
    sde, parameterization, sigma_data = PRECONDITIONING[name]
    network = Answer(recording["F"])
    t = sde.time(-2 * torch.log(column(recording["sigma"]).double()))
    x = sde.alpha(t) * recording["x"]
    yield "D", Denoiser(network, sde, parameterization, sigma_data)(x, t).x0, recording["D"]
    yield "net_in", network.x, recording["net_in"]
    if name == "EDMPrecond":
        yield "noise_labels", -network.log_snr / 8, recording["noise_labels"]
    else:
        log_snr = -2 * torch.log(recording["vp_sigma_of_t"])
        yield "vp_sigma_of_t", torch.exp(-0.5 * sde.log_snr(recording["vp_t"])), recording["vp_sigma_of_t"]
        yield "vp_sigma_inv", sde.time(log_snr), recording["vp_sigma_inv"]


def losses(recording: Recording) -> Iterator[Comparison]:
    """Means over the dimensions of the published, unreduced losses."""
    x0 = recording["images"].double()
    for case, (sde, time, weight) in LOSSES.items():
        t, eps = time(recording[f"{case}.rnd"].double()), recording[f"{case}.noise"].double()
        loss = denoising_loss(sde, gaussian(recording, x0.shape[1:]).denoiser(sde), weight, x0, eps, t)
        yield f"{case}.loss", loss, recording[f"{case}.loss"].flatten(1).mean(1)


def sampler(recording: Recording) -> Iterator[Comparison]:
    """Heun on Karras's grid; the published last Euler step to no noise is the last denoising."""
    for case, options in recording.cases.items():
        keywords = options["kwargs"]
        edm = case.startswith("edm.") or (keywords["discretization"], keywords["schedule"]) == ("edm", "linear")
        if not edm or keywords.get("S_churn") or keywords.get("alpha", 1) != 1:
            continue
        sigma_min = max(keywords.get("sigma_min", 0.002), options["net_sigma_min"])
        sigma_max = min(keywords.get("sigma_max", 80.0), float(options["net_sigma_max"]))
        sde, num_steps = EDMSDE(sigma_min, sigma_max), keywords.get("num_steps", 18)
        times = GRIDS["karras"](sde, num_steps - 1, rho=keywords.get("rho", 7))
        yield f"{case}.sigma_steps", times, recording[f"{case}.sigma_steps"][:-1]
        x = recording[f"{case}.latents"].double() * sigma_max
        denoise = gaussian(recording, x.shape[1:]).denoiser(sde)
        yield f"{case}.x", sample(Heun(sde), denoise, x, times, zeros), recording[f"{case}.x"]


def churn(recording: Recording) -> Iterator[Comparison]:
    """The stochastic sampler, on a process that goes on above the first noise level; it drew noise for every move."""
    for case, options in recording.cases.items():
        keywords = options["kwargs"]
        if not (case.startswith("edm.") and keywords.get("S_churn")):
            continue
        low, high = keywords.get("S_min", 0.0), keywords.get("S_max", math.inf)
        sde, noise = EDMSDE(0.002, 160.0), recording[f"{case}.noise"]
        times = GRIDS["karras"](sde, keywords["num_steps"] - 1, start=80.0)
        step = Churn(sde, keywords["S_churn"], low, high, keywords.get("S_noise", 1.0))
        x, denoise = recording[f"{case}.latents"].double() * 80.0, gaussian(recording, (3, 3, 3)).denoiser(sde)
        drawn = noise[(times >= low) & (times <= high)]
        yield f"{case}.x", sample(step, denoise, x, times, replay(drawn)), recording[f"{case}.x"]


def sampler_on_the_iddpm_grid(recording: Recording) -> Iterator[Comparison]:
    """Euler, and Heun with a network that rounds sigma to its table, at the recorded noise levels."""
    table = recording["iddpm_u"].double()
    for case, step in {"ablation.iddpm_linear_none_euler": DDIM, "ablation.iddpm_rounded_net": Heun}.items():
        times = recording[f"{case}.sigma_steps"][:-1]
        sde = EDMSDE(times[-1].item(), times[0].item())
        x = recording[f"{case}.latents"].double() * sde.t_max
        exact = gaussian(recording, x.shape[1:]).denoiser(sde)

        def rounded(x: Tensor, t: float, exact: Callable = exact) -> Tensor:
            return exact(x, table[(table - t).abs().argmin()].item())

        denoise = rounded if case.endswith("rounded_net") else exact
        yield f"{case}.x", sample(step(sde), denoise, x, times, zeros), recording[f"{case}.x"]


_SAMPLER = ("edm_sampler/edm_sampler",)
_NETWORKS = ("edm_models/dhariwal_edm/io", "edm_models/songunet_ddpmpp_vp/io")


def group(what: str, files: tuple[str, ...], allowed: float, needs: str, compare: Callable) -> Group:
    return Group("edm", what, files, per_sample, allowed, compare, needs)


GROUPS = (
    group("Heun without churn on Karras's grid", _SAMPLER, 1e-10, "mu", sampler),
    group("Heun with churn", _SAMPLER, 1e-10, "edm.churn_clipped.x", churn),
    group("Euler and Heun on the grid of iDDPM", _SAMPLER, 1e-5, "iddpm_u", sampler_on_the_iddpm_grid),
    group("losses: EDM, VP, VE", ("losses/edm_losses",), 1e-5, "images", losses),
    group("preconditioning: EDM, VP", _NETWORKS, 1e-5, "F", preconditioning),
)
