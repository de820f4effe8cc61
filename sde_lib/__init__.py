"""The mathematics of score-based generative modelling: processes, denoisers, losses, flow and likelihood.

It has no files, configs or networks, and imports none of the other packages.
"""

if __name__ != "score_sde.sde_lib":  # a second copy would have separate tables
    raise ImportError("import score_sde.sde_lib: sde_lib is a part of the package score_sde")

from collections.abc import Callable
from typing import Any

from score_sde.sde_lib.bound import (
    Bound,
    Hybrid,
    VariationalBound,
    diffusion_bound,
    prior_divergence,
    prior_term,
    variational_bound,
)
from score_sde.sde_lib.classifier import Classification, Classifier
from score_sde.sde_lib.consistency import ConsistencyDistillation, ConsistencyModel, ConsistencyTraining, transport
from score_sde.sde_lib.contrastive import Contrastive, Pair
from score_sde.sde_lib.denoiser import (
    C_NOISE,
    CHAIN_PARAMETERIZATIONS,
    INPUTS,
    PARAMETERIZATIONS,
    Denoise,
    Denoiser,
    Estimate,
    PerExample,
    Prediction,
    for_examples,
)
from score_sde.sde_lib.dequantization import DEQUANTIZATIONS
from score_sde.sde_lib.discrete import Discrete, ladder_ratio, ladder_size
from score_sde.sde_lib.exact import ExactDenoiser, GaussianMixture
from score_sde.sde_lib.fit import fit
from score_sde.sde_lib.flow import Flow
from score_sde.sde_lib.gaussian import Gaussian
from score_sde.sde_lib.likelihood import PRIORS, LogProb, log_prob, sample_log_prob
from score_sde.sde_lib.losses import WEIGHTS, denoising_loss
from score_sde.sde_lib.objective import Denoising, Objective
from score_sde.sde_lib.process import SDE, Draw
from score_sde.sde_lib.processes import EDMSDE, VESDE, VPSDE, CosineSDE, RectifiedSDE, SubVPSDE, ddpm, iddpm, ncsn
from score_sde.sde_lib.schedules import LaplaceSDE, LearnedSDE, LogisticSDE, MonotoneSchedule, SigmoidSDE
from score_sde.sde_lib.score_matching import Implicit, Sliced, SlicedVR, explicit
from score_sde.sde_lib.solvers import ADAPTIVE, SOLVERS, TORCHDIFFEQ
from score_sde.sde_lib.timestep_samplers import (
    LEARNING_TIMESTEP_SAMPLERS,
    TIMESTEP_SAMPLERS,
    TimestepSampler,
    stratified,
)
from score_sde.sde_lib.trace import PROBES, Exact, Hutchinson
from score_sde.sde_lib.velocity import NonFiniteError, NotConvergedError

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
"""Processes by name."""

OBJECTIVES: dict[str, type[Objective[Any]]] = {
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
"""Training objectives by name."""

__all__ = [
    "ADAPTIVE",
    "CHAIN_PARAMETERIZATIONS",
    "C_NOISE",
    "DEQUANTIZATIONS",
    "EDMSDE",
    "INPUTS",
    "LEARNING_TIMESTEP_SAMPLERS",
    "OBJECTIVES",
    "PARAMETERIZATIONS",
    "PRIORS",
    "PROBES",
    "SDE",
    "SDES",
    "SOLVERS",
    "TIMESTEP_SAMPLERS",
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
    "Denoise",
    "Denoiser",
    "Denoising",
    "Discrete",
    "Draw",
    "Estimate",
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
    "PerExample",
    "Prediction",
    "RectifiedSDE",
    "SigmoidSDE",
    "Sliced",
    "SlicedVR",
    "SubVPSDE",
    "TimestepSampler",
    "VariationalBound",
    "ddpm",
    "denoising_loss",
    "diffusion_bound",
    "explicit",
    "fit",
    "for_examples",
    "iddpm",
    "ladder_ratio",
    "ladder_size",
    "log_prob",
    "ncsn",
    "prior_divergence",
    "prior_term",
    "sample_log_prob",
    "stratified",
    "transport",
    "variational_bound",
]
