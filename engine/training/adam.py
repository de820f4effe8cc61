"""Adam with fused kernels: one pass over parameters, gradients and moments."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.adam import adam
from torch.optim.adamw import adamw

from score_sde.configs.default import Optim
from score_sde.engine import ranks
from score_sde.storage.naming import pick


class Adam:
    """Adam, bit for bit ``torch.optim.Adam(fused=True)``, with the same format of the state.

        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2,    g the gradient plus weight_decay p
        p <- p - lr m / (1 - beta1^n) / (sqrt(v / (1 - beta2^n)) + 1e-8)

    An instance of ``torch.optim.Adam`` imports the compiler of PyTorch, which takes as long as PyTorch itself; this
    class calls the functional interface, which does not.

    Attributes:
        lr: learning rate of the next step.
    Args:
        parameters: float32 on one device; a step skips parameters without a gradient.
        betas: decays of the two moments, in [0, 1).
    Raises: ValueError for betas outside [0, 1).
    Reference: Kingma, Ba, "Adam: A Method for Stochastic Optimization", 2014. arXiv:1412.6980
    """

    update: ClassVar[Callable[..., None]] = staticmethod(adam)

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float = 0.0
    ) -> None:
        for number, beta in enumerate(betas, 1):
            if not 0 <= beta < 1:
                raise ValueError(f"optim.beta{number} {beta}: need 0 to below 1")
        self.parameters, self.lr, self.betas, self.weight_decay = list(parameters), lr, betas, weight_decay
        self.state: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, found_inf: Tensor | None = None) -> None:
        """Updates the parameters and moments; leaves all unchanged if ``found_inf`` (0-d) is 1."""
        with_gradient = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        for i in with_gradient:
            if i not in self.state:
                self.state[i] = _moments(self.parameters[i])
        parameters = [self.parameters[i] for i in with_gradient]
        first, second, steps = (
            [ranks.local(self.state[i][key]) for i in with_gradient] for key in ("exp_avg", "exp_avg_sq", "step")
        )
        self.update(
            [ranks.local(p) for p in parameters],
            [ranks.local(p.grad) for p in parameters if p.grad is not None],
            first,
            second,
            [],
            steps,
            fused=True,
            found_inf=found_inf,
            lr=self.lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def zero_grad(self) -> None:
        """Drops the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self, get: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, Any]:
        """Returns ``step``, ``exp_avg`` and ``exp_avg_sq`` of each parameter by its index, in the format of PyTorch.

        Args:
            get: applied to each tensor.
        """
        state = {i: {key: get(tensor) for key, tensor in moments.items()} for i, moments in self.state.items()}
        group = {"lr": self.lr, "betas": self.betas, "weight_decay": self.weight_decay, "eps": 1e-8}
        return {"state": state, "param_groups": [{**group, "params": list(range(len(self.parameters)))}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the moments of a ``state_dict``, but not its settings."""
        self.state = {}
        for i, moments in state["state"].items():
            p = self.parameters[i]
            own = {key: moments[key].to(p.device, p.dtype) for key in ("step", "exp_avg", "exp_avg_sq")}
            self.state[i] = {
                key: ranks.spread(value, p) if value.shape == p.shape else value for key, value in own.items()
            }


class AdamW(Adam):
    """Adam with decoupled weight decay: p <- p - lr weight_decay p.

    Reference: Loshchilov, Hutter, "Decoupled Weight Decay Regularization", 2019. arXiv:1711.05101
    """

    update: ClassVar[Callable[..., None]] = staticmethod(adamw)


def _moments(parameter: Tensor) -> dict[str, Tensor]:
    first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
    return {"step": torch.zeros((), device=parameter.device), "exp_avg": first, "exp_avg_sq": second}


OPTIMIZERS = {"adam": Adam, "adamw": AdamW}


def make_optimizer(settings: Optim, parameters: Iterable[nn.Parameter]) -> Adam:
    """Returns the optimizer of a config, with its full learning rate."""
    kind = pick(OPTIMIZERS, "optimizer", settings.name)
    return kind(parameters, settings.learning_rate, (settings.beta1, settings.beta2), settings.weight_decay)
