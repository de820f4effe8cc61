"""From noise to data: grids of times, steps between them, and the one loop that takes them."""

from samplers.adaptive import ODE
from samplers.consistency import ConsistencyStep
from samplers.ddim import DDIM, Ancestral, LearnedVariance
from samplers.grids import GRIDS
from samplers.guidance import classifier, classifier_free
from samplers.langevin import AnnealedLangevin, langevin_step_size
from samplers.loop import Step, sample, trajectory
from samplers.pndm import PLMS, PNDM
from samplers.multistep import Adams, DPMSolver, DPMSolverPP, Multistep, UniPC
from samplers.noise import Noise
from samplers.predictor_corrector import PredictorCorrector
from samplers.singlestep import Heun
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
    "plms": PLMS,
    "pndm": PNDM,
    "ode": ODE,
    "consistency": ConsistencyStep,
}
"""What the user types after ``--sampler``, to the step."""

__all__ = [
    "DDIM",
    "GRIDS",
    "ODE",
    "PLMS",
    "PNDM",
    "STEPS",
    "Ancestral",
    "AnnealedLangevin",
    "ConsistencyStep",
    "EulerMaruyama",
    "Heun",
    "LearnedVariance",
    "Noise",
    "PredictorCorrector",
    "ReverseDiffusion",
    "Step",
    "classifier",
    "classifier_free",
    "langevin_step_size",
    "sample",
    "trajectory",
]
