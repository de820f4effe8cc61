"""The mathematics of score-based generative modelling: processes, denoisers, losses, flow and likelihood.

Knows no files, configs or networks, and imports nothing of the other packages.
"""

from sde_lib.denoiser import PARAMETERIZATIONS, Denoiser, Prediction
from sde_lib.discrete import Discrete
from sde_lib.exact import ExactDenoiser, GaussianMixture
from sde_lib.flow import SOLVERS, NonFiniteError, NotConvergedError
from sde_lib.likelihood import PROBES, LogProb, exact_trace, log_prob
from sde_lib.losses import TIME_LAWS, WEIGHTS, denoising_loss, stratified
from sde_lib.process import SDE
from sde_lib.processes import EDMSDE, VESDE, VPSDE, CosineSDE, SubVPSDE

SDES: dict[str, type[SDE]] = {
    "vpsde": VPSDE,
    "subvpsde": SubVPSDE,
    "vesde": VESDE,
    "cosine": CosineSDE,
    "edm": EDMSDE,
}
"""What the user types, to the process."""

__all__ = [
    "EDMSDE",
    "PARAMETERIZATIONS",
    "PROBES",
    "SDE",
    "SDES",
    "SOLVERS",
    "TIME_LAWS",
    "VESDE",
    "VPSDE",
    "WEIGHTS",
    "CosineSDE",
    "Denoiser",
    "Discrete",
    "ExactDenoiser",
    "GaussianMixture",
    "LogProb",
    "NonFiniteError",
    "NotConvergedError",
    "Prediction",
    "SubVPSDE",
    "denoising_loss",
    "exact_trace",
    "log_prob",
    "stratified",
]
