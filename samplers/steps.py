"""Tables of the samplers and of their noises."""

from score_sde.samplers.adams import Adams
from score_sde.samplers.adaptive import AdaptiveSDE, DPMAdaptive
from score_sde.samplers.brownian import Brownian
from score_sde.samplers.churn import Churn
from score_sde.samplers.consistency import ConsistencyStep
from score_sde.samplers.ddim import DDIM, Ancestral, LearnedVariance
from score_sde.samplers.langevin import AnnealedLangevin
from score_sde.samplers.loop import Step
from score_sde.samplers.multistep import Multistep
from score_sde.samplers.noise import Noise
from score_sde.samplers.ode import ODE
from score_sde.samplers.pndm import PLMS, PNDM
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
from score_sde.samplers.stochastic import EulerMaruyama, ReverseDiffusion

STEPS: dict[str, type[Step]] = {
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
    "ancestral_learned": LearnedVariance,
    "pc": PredictorCorrector,
    "ald": AnnealedLangevin,
    "ddim": DDIM,
    "heun": Heun,
    "edm": Churn,
    "dpm_2s": DPM2S,
    "dpm_3s": DPM3S,
    "dpmpp_2s": DPMPP2S,
    "rk4": RK4,
    "rk45": RK45,
    "plms": PLMS,
    "pndm": PNDM,
    "multistep": Multistep,
    "dpm": DPMSolver,
    "dpmpp_2m": DPMSolverPP,
    "dpmpp_3m": DPMSolverPP3,
    "dpmpp_2m_sde": SDEDPMSolverPP,
    "dpmpp_3m_sde": SDEDPMSolverPP3,
    "sa": SASolver,
    "deis": DEIS,
    "ipndm": IPNDM,
    "vab": VelocityAdams,
    "unipc": UniPC,
    "adams": Adams,
    "ode": ODE,
    "dpm_adaptive": DPMAdaptive,
    "adaptive_sde": AdaptiveSDE,
    "consistency": ConsistencyStep,
}
"""Step classes by their names on the command line, ``--sampler``."""

NOISES: dict[str, type[Noise]] = {"independent": Noise, "brownian": Brownian}
"""Noise classes: independent draws, or increments of one Brownian path, which grids of N and 2 N steps share."""
