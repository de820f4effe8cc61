"""EDM: preconditioning, losses and the sampler."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from parity.recordings import Comparison, Group, Recording, column, gaussian, parameters, per_sample, replay
from parity.score_sde import zeros
from score_sde.samplers import DDIM, GRIDS, Heun, sample
from score_sde.samplers.churn import Churn
from score_sde.sde_lib import EDMSDE, SDE, VESDE, VPSDE, WEIGHTS, Denoiser, denoising_loss
from score_sde.sde_lib.losses import Weight

Loss = tuple[SDE, Callable[[Tensor], Tensor], Weight]
"""Returns the process, the time of the recorded random number, and the weight on the squared error of x0."""


def vp_loss(beta_d: float = 19.9, beta_min: float = 0.1, epsilon_t: float = 1e-5) -> Loss:
    sde = VPSDE(beta_min, beta_min + beta_d, t_min=epsilon_t)
    return sde, lambda rnd: 1 + rnd * (epsilon_t - 1), WEIGHTS["simple"]


def ve_loss(sigma_min: float = 0.02, sigma_max: float = 100.0) -> Loss:
    return VESDE(sigma_min, sigma_max, t_min=0.0), lambda rnd: rnd, WEIGHTS["simple"]


def edm_loss(P_mean: float = -1.2, P_std: float = 1.2, sigma_data: float = 0.5) -> Loss:
    return EDMSDE(), lambda rnd: torch.exp(P_std * rnd + P_mean), partial(WEIGHTS["edm"], sigma_data=sigma_data)


LOSSES = {"VPLoss": vp_loss, "VELoss": ve_loss, "EDMLoss": edm_loss}
"""The published losses by name, with their defaults."""


def preconditioned(about: dict) -> tuple[SDE, str, float]:
    """Returns the process, parameterization and sigma_data of a published wrapper."""
    attributes = about["attributes"]
    if about["precond"] == "EDMPrecond":
        return EDMSDE(), "edm", attributes["sigma_data"]
    return VPSDE(attributes["beta_min"], attributes["beta_min"] + attributes["beta_d"]), "eps", 1.0


class Answer(nn.Module):
    """Network that returns the recorded answer and keeps its inputs."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        self.x, self.log_snr = x, log_snr
        return self.output


def preconditioning(recording: Recording) -> Iterator[Comparison]:
    """Compares the network's input and the denoised output; the VP state is alpha times the reference's."""
    about = parameters(recording.name.replace("/io", "/config"))
    sde, parameterization, sigma_data = preconditioned(about)
    network = Answer(recording["F"])
    t = sde.time(-2 * torch.log(column(recording["sigma"]).double()))
    x = sde.alpha(t) * recording["x"]
    yield "D", Denoiser(network, sde, parameterization, sigma_data)(x, t).x0, recording["D"]
    yield "net_in", network.x, recording["net_in"]
    if about["precond"] == "EDMPrecond":
        yield "noise_labels", -network.log_snr / 8, recording["noise_labels"]
    else:
        log_snr = -2 * torch.log(recording["vp_sigma_of_t"])
        yield "vp_sigma_of_t", torch.exp(-0.5 * sde.log_snr(recording["vp_t"])), recording["vp_sigma_of_t"]
        yield "vp_sigma_inv", sde.time(log_snr), recording["vp_sigma_inv"]


def losses(recording: Recording) -> Iterator[Comparison]:
    """Compares the published unreduced losses, averaged over the dimensions."""
    x0 = recording["images"].double()
    for case, about in recording.cases.items():
        sde, time, weight = LOSSES[about["cls"]](**about["kwargs"])
        t, eps = time(recording[f"{case}.rnd"].double()), recording[f"{case}.noise"].double()
        loss = denoising_loss(sde, gaussian(recording, x0.shape[1:]).denoiser(sde), weight, x0, eps, t)
        yield f"{case}.loss", loss, recording[f"{case}.loss"].flatten(1).mean(1)


def limits(options: dict) -> tuple[float, float]:
    """Noise levels between which a case samples: its own, clipped to its network's."""
    low, high = options["kwargs"].get("sigma_min", 0.002), options["kwargs"].get("sigma_max", 80.0)
    return max(low, options["net_sigma_min"]), min(high, float(options["net_sigma_max"]))


def sampler(recording: Recording) -> Iterator[Comparison]:
    """Heun on Karras's grid; the reference's last Euler step, to zero noise, is the last denoising here."""
    for case, options in recording.cases.items():
        keywords = options["kwargs"]
        edm = case.startswith("edm.") or (keywords["discretization"], keywords["schedule"]) == ("edm", "linear")
        if not edm or keywords.get("S_churn") or keywords.get("alpha", 1) != 1:
            continue
        sigma_min, sigma_max = limits(options)
        sde, num_steps = EDMSDE(sigma_min, sigma_max), keywords.get("num_steps", 18)
        times = GRIDS["karras"](sde, num_steps - 1, rho=keywords.get("rho", 7))
        yield f"{case}.sigma_steps", times, recording[f"{case}.sigma_steps"][:-1]
        x = recording[f"{case}.latents"].double() * sigma_max
        denoise = gaussian(recording, x.shape[1:]).denoiser(sde)
        yield f"{case}.x", sample(Heun(sde), denoise, x, times, zeros), recording[f"{case}.x"]


def churn(recording: Recording) -> Iterator[Comparison]:
    """The stochastic sampler on a process whose range extends above the first noise level; each step has recorded
    noise."""
    for case, options in recording.cases.items():
        keywords = options["kwargs"]
        if not (case.startswith("edm.") and keywords.get("S_churn")):
            continue
        low, high = keywords.get("S_min", 0.0), keywords.get("S_max", math.inf)
        sigma_min, sigma_max = limits(options)
        sde, noise = EDMSDE(sigma_min, 2 * sigma_max), recording[f"{case}.noise"]
        times = GRIDS["karras"](sde, keywords.get("num_steps", 18) - 1, start=sigma_max, rho=keywords.get("rho", 7))
        step = Churn(sde, keywords["S_churn"], low, high, keywords.get("S_noise", 1.0))
        x = recording[f"{case}.latents"].double() * sigma_max
        denoise = gaussian(recording, x.shape[1:]).denoiser(sde)
        drawn = noise[(times >= low) & (times <= high)]
        yield f"{case}.x", sample(step, denoise, x, times, replay(drawn)), recording[f"{case}.x"]


def sampler_on_the_iddpm_grid(recording: Recording) -> Iterator[Comparison]:
    """Euler, and Heun with a network that rounds sigma to its table, at the recorded noise levels."""
    table = recording["iddpm_u"].double()
    for case, options in recording.cases.items():
        keywords = options["kwargs"]
        if (keywords.get("discretization"), keywords.get("schedule")) != ("iddpm", "linear"):
            continue
        step = {"euler": DDIM, "heun": Heun}[keywords["solver"]]
        times = recording[f"{case}.sigma_steps"][:-1]
        sde = EDMSDE(times[-1].item(), times[0].item())
        x = recording[f"{case}.latents"].double() * sde.t_max
        exact = gaussian(recording, x.shape[1:]).denoiser(sde)

        def rounded(x: Tensor, t: float, exact: Callable = exact) -> Tensor:
            return exact(x, table[(table - t).abs().argmin()].item())

        denoise = exact if options["net_round_sigma"] == "identity" else rounded
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
