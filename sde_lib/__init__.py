"""The mathematics of score-based generative modelling: processes, denoisers, losses, flow and likelihood.

Knows no files, configs or networks, and imports nothing of the other packages.
"""

from collections.abc import Callable

from sde_lib.bound import (
    Bound,
    Hybrid,
    VariationalBound,
    diffusion_bound,
    prior_divergence,
    prior_term,
    variational_bound,
)
from sde_lib.classifier import Classification, Classifier
from sde_lib.consistency import ConsistencyDistillation, ConsistencyModel, ConsistencyTraining, transport
from sde_lib.contrastive import Contrastive, Pair
from sde_lib.denoiser import (
    C_NOISE,
    CHAIN_PARAMETERIZATIONS,
    INPUTS,
    PARAMETERIZATIONS,
    Denoiser,
    Each,
    Prediction,
    of_rows,
)
from sde_lib.dequantization import DEQUANTIZATIONS
from sde_lib.discrete import Discrete, ladder_ratio, ladder_size
from sde_lib.exact import ExactDenoiser, GaussianMixture
from sde_lib.fit import fit
from sde_lib.flow import Flow
from sde_lib.gaussian import Gaussian
from sde_lib.laws import LEARNING_LAWS, TIME_LAWS, TimeLaw, stratified
from sde_lib.likelihood import PRIORS, LogProb, log_prob, sample_log_prob
from sde_lib.losses import WEIGHTS, denoising_loss
from sde_lib.motion import NonFiniteError, NotConvergedError
from sde_lib.objective import Denoising, Objective
from sde_lib.process import SDE
from sde_lib.processes import EDMSDE, VESDE, VPSDE, CosineSDE, RectifiedSDE, SubVPSDE, ddpm, iddpm, ncsn
from sde_lib.schedules import LaplaceSDE, LearnedSDE, LogisticSDE, MonotoneSchedule, SigmoidSDE
from sde_lib.score_matching import Implicit, Sliced, SlicedVR, explicit
from sde_lib.solvers import ADAPTIVE, SOLVERS, TORCHDIFFEQ
from sde_lib.trace import PROBES, Exact, Hutchinson

SDES: dict[str, Callable[..., SDE]] = {
    "vpsde": VPSDE,
    "subvpsde": SubVPSDE,
    "vesde": VESDE,
    "cosine": CosineSDE,
    "edm": EDMSDE,
    "rectified": RectifiedSDE,
    "sigmoid": SigmoidSDE,
    "laplace": LaplaceSDE,
    "logistic": LogisticSDE,
    "ddpm": ddpm,
    "iddpm": iddpm,
    "ncsn": ncsn,
}
"""What the user types, to the process."""

OBJECTIVES: dict[str, type[Objective]] = {
    "denoising": Denoising,
    "bound": Bound,
    "hybrid": Hybrid,
    "consistency_training": ConsistencyTraining,
    "consistency_distillation": ConsistencyDistillation,
    "implicit": Implicit,
    "sliced": Sliced,
    "sliced_vr": SlicedVR,
    "classification": Classification,
    "contrastive": Contrastive,
}
"""The name of what is trained, to the loss."""

__all__ = [
    "ADAPTIVE",
    "CHAIN_PARAMETERIZATIONS",
    "C_NOISE",
    "DEQUANTIZATIONS",
    "EDMSDE",
    "INPUTS",
    "LEARNING_LAWS",
    "OBJECTIVES",
    "PARAMETERIZATIONS",
    "PRIORS",
    "PROBES",
    "SDE",
    "SDES",
    "SOLVERS",
    "TIME_LAWS",
    "TORCHDIFFEQ",
    "VESDE",
    "VPSDE",
    "WEIGHTS",
    "Bound",
    "Classification",
    "Classifier",
    "ConsistencyDistillation",
    "ConsistencyModel",
    "ConsistencyTraining",
    "Contrastive",
    "CosineSDE",
    "Denoiser",
    "Denoising",
    "Discrete",
    "Each",
    "Exact",
    "ExactDenoiser",
    "Flow",
    "Gaussian",
    "GaussianMixture",
    "Hutchinson",
    "Hybrid",
    "Implicit",
    "LaplaceSDE",
    "LearnedSDE",
    "LogProb",
    "LogisticSDE",
    "MonotoneSchedule",
    "NonFiniteError",
    "NotConvergedError",
    "Objective",
    "Pair",
    "Prediction",
    "RectifiedSDE",
    "SigmoidSDE",
    "Sliced",
    "SlicedVR",
    "SubVPSDE",
    "TimeLaw",
    "VariationalBound",
    "ddpm",
    "denoising_loss",
    "diffusion_bound",
    "explicit",
    "fit",
    "iddpm",
    "ladder_ratio",
    "ladder_size",
    "log_prob",
    "ncsn",
    "of_rows",
    "prior_divergence",
    "prior_term",
    "sample_log_prob",
    "stratified",
    "transport",
    "variational_bound",
]
