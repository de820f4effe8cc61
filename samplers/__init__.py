"""From noise to data: grids of times, steps between them, and the one loop that takes them."""

from samplers.adaptive import ODE
from samplers.ddim import DDIM, Ancestral
from samplers.grids import GRIDS
from samplers.guidance import classifier, classifier_free
from samplers.loop import Step, sample, trajectory
from samplers.noise import Noise
from samplers.predictor_corrector import PredictorCorrector
from samplers.singlestep import Heun
from samplers.stochastic import EulerMaruyama, ReverseDiffusion

STEPS: dict[str, type[Step]] = {
    "euler_maruyama": EulerMaruyama,
    "reverse_diffusion": ReverseDiffusion,
    "ancestral": Ancestral,
    "pc": PredictorCorrector,
    "ddim": DDIM,
    "heun": Heun,
    "ode": ODE,
}
"""What the user types after ``--sampler``, to the step."""

__all__ = [
    "DDIM",
    "GRIDS",
    "ODE",
    "STEPS",
    "Ancestral",
    "EulerMaruyama",
    "Heun",
    "Noise",
    "PredictorCorrector",
    "ReverseDiffusion",
    "Step",
    "classifier",
    "classifier_free",
    "sample",
    "trajectory",
]
