"""From noise to data: grids of times, steps between them, and the one loop that takes them."""

from samplers.adams import Adams
from samplers.adaptive import ODE, AdaptiveSDE, DPMAdaptive
from samplers.brownian import Brownian
from samplers.churn import Churn
from samplers.consistency import ConsistencyStep
from samplers.constraints import block_means, enlarge, grey, lowpass, masked, replacement, resampled
from samplers.ddim import DDIM, Ancestral, LearnedVariance
from samplers.editing import sdedit, translate
from samplers.grids import GRIDS
from samplers.guidance import (
    autoguidance,
    classifier,
    classifier_free,
    clean_embedding_guidance,
    dynamic_threshold,
    embedding_guidance,
    static_threshold,
    within,
)
from samplers.langevin import AnnealedLangevin, langevin_step_size
from samplers.loop import Step, sample, trajectory
from samplers.multistep import Multistep
from samplers.noise import Noise
from samplers.pndm import PLMS, PNDM
from samplers.posterior import DPS, moment_matching, pigdm
from samplers.predictor_corrector import PredictorCorrector
from samplers.published import (
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
from samplers.singlestep import DPM2S, DPM3S, DPMPP2S, RK4, RK45, Heun
from samplers.stochastic import EulerMaruyama, ReverseDiffusion

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
"""What the user types after ``--sampler``, to the step."""

NOISES: dict[str, type[Noise]] = {"independent": Noise, "brownian": Brownian}
"""What a move's noise is: its own, or the increment of one path, which grids of twice the moves share."""


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
