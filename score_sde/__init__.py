"""Score-based generative modelling through stochastic differential equations.

    from score_sde.samplers import sample
    from score_sde.sde_lib import VPSDE

In a clone the subpackages are folders of its top level; an installed package contains them.
"""

from pathlib import Path

_here = Path(__file__).resolve().parent
if not (_here / "sde_lib").is_dir():
    __path__.append(str(_here.parent))
