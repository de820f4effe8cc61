"""Sampling: grids of times, steps from one time to the next, and the loop that applies them.

    x = draw(denoise, sde, shape=(2,), seeds=range(1000), sampler="adams")

draws samples in one call. ``sample(step, denoise, x, times, noise)`` is the loop itself, for a step with options of its
own, other times or a constraint.
"""

if __name__ != "score_sde.samplers":  # a second copy would have tables of its own
    raise ImportError("import score_sde.samplers: samplers is a part of the package score_sde")

from score_sde.samplers.adams import Adams
from score_sde.samplers.adaptive import AdaptiveSDE, DPMAdaptive
from score_sde.samplers.brownian import Brownian
from score_sde.samplers.churn import Churn
from score_sde.samplers.consistency import ConsistencyStep
from score_sde.samplers.constraints import block_means, enlarge, grey, lowpass, masked, replacement, resampled
from score_sde.samplers.ddim import DDIM, Ancestral, LearnedVariance
from score_sde.samplers.draw import draw
from score_sde.samplers.editing import sdedit, translate
from score_sde.samplers.grids import GRIDS
from score_sde.samplers.guidance import (
    autoguidance,
    classifier,
    classifier_free,
    clean_embedding_guidance,
    dynamic_threshold,
    embedding_guidance,
    static_threshold,
    within,
)
from score_sde.samplers.langevin import AnnealedLangevin, langevin_step_size
from score_sde.samplers.loop import Step, sample, trajectory
from score_sde.samplers.multistep import Multistep
from score_sde.samplers.noise import Noise
from score_sde.samplers.ode import ODE
from score_sde.samplers.pndm import PLMS, PNDM
from score_sde.samplers.posterior import DPS, moment_matching, pigdm
from score_sde.samplers.predictor_corrector import PredictorCorrector
from score_sde.samplers.published import (
    DEIS,
    IPNDM,
    DPMSolver,
    DPMSolverPP,
    DPMSolverPP3,
    SASolver,
    SDEDPMSolverPP,
    SDEDPMSolverPP3,
    UniPC,
    VelocityAdams,
)
from score_sde.samplers.singlestep import DPM2S, DPM3S, DPMPP2S, RK4, RK45, Heun
from score_sde.samplers.steps import NOISES, STEPS
from score_sde.samplers.stochastic import EulerMaruyama, ReverseDiffusion

__all__ = [
    "DDIM",
    "DEIS",
    "DPM2S",
    "DPM3S",
    "DPMPP2S",
    "DPS",
    "GRIDS",
    "IPNDM",
    "NOISES",
    "ODE",
    "PLMS",
    "PNDM",
    "RK4",
    "RK45",
    "STEPS",
    "Adams",
    "AdaptiveSDE",
    "Ancestral",
    "AnnealedLangevin",
    "Brownian",
    "Churn",
    "ConsistencyStep",
    "DPMAdaptive",
    "DPMSolver",
    "DPMSolverPP",
    "DPMSolverPP3",
    "EulerMaruyama",
    "Heun",
    "LearnedVariance",
    "Multistep",
    "Noise",
    "PredictorCorrector",
    "ReverseDiffusion",
    "SASolver",
    "SDEDPMSolverPP",
    "SDEDPMSolverPP3",
    "Step",
    "UniPC",
    "VelocityAdams",
    "autoguidance",
    "block_means",
    "classifier",
    "classifier_free",
    "clean_embedding_guidance",
    "draw",
    "dynamic_threshold",
    "embedding_guidance",
    "enlarge",
    "grey",
    "langevin_step_size",
    "lowpass",
    "masked",
    "moment_matching",
    "pigdm",
    "replacement",
    "resampled",
    "sample",
    "sdedit",
    "static_threshold",
    "trajectory",
    "translate",
    "within",
]
