"""A simulated accelerator: the torch device ``sim`` computes on the CPU, bit for bit, and behaves like a GPU.

- An operation on tensors of both devices raises; 0-d CPU tensors and CPU indices are accepted, as by CUDA.
- ``numpy()`` raises.
- Operations that make the host wait for a GPU are recorded in ``waits``: reading a number, a blocking copy in either
  direction, and operations whose output shape depends on values.

Importing this module registers the device for the whole process, so tests use it in a separate process. Run as a
program, it executes a command of the project and lists the lines that waited:

    python tests/simulated.py --config vpsde --mode train --device sim --config.train.total_images=1280

It does not simulate speed, memory, autocast, compilation, pinned memory or several streams.
"""

import collections
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "sim"
aten = torch.ops.aten

waits: collections.Counter[str] = collections.Counter()
"""Number of waits of the host, by reason and line of the project."""

COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
READING = {
    aten._local_scalar_dense.default: "number read",
    aten.equal.default: "tensors compared",
    aten.is_nonzero.default: "number read",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.repeat_interleave.Tensor: "repeat_interleave",
    aten.bincount.default: "bincount",
}
"""Operations that wait, and the reason."""


class Simulated(Tensor):
    """A tensor of the device.

    Attributes:
        held: the CPU tensor with the values.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Simulated":
        made = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return compute(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"{NAME}({self.held})"

    def __deepcopy__(self, memo: dict) -> Tensor:
        copied = Simulated(self.held.clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.held.__reduce_ex__(protocol)  # read back with map_location="cpu"

    def tolist(self) -> Any:
        record("number read")
        return self.held.tolist()

    def numpy(self, **_: Any) -> None:
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any, **__: Any) -> None:
        self.numpy()

    def new_tensor(self, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device, requires_grad=requires_grad)


def record(reason: str) -> None:
    """Counts a wait for the innermost line outside this file and outside packages."""
    for frame in reversed(traceback.extract_stack()):
        if frame.filename != __file__ and not frame.filename.startswith((sys.prefix, sys.base_prefix, "<frozen")):
            waits[f"{reason}, {os.path.relpath(frame.filename)}:{frame.lineno}"] += 1
            return


@contextlib.contextmanager
def counted() -> Iterator[collections.Counter[str]]:
    """Yields a counter that holds the waits of the ``with`` block once it ends."""
    before, found = waits.copy(), collections.Counter()
    yield found
    found.update(waits - before)


def compute(func: Any, args: tuple, kwargs: dict) -> Any:
    """Runs one operation on the held tensors; the result stays on the device unless copied to another one."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Simulated)]
    target = kwargs.get("device")
    check_devices(func, ours, tensors)
    if reason := wait_of(func, args, kwargs, ours):
        record(reason)
    if func is aten._pin_memory.default:
        return args[0]
    plain, options = tree_map_only(Simulated, lambda tensor: tensor.held, (args, kwargs))
    options.pop("pin_memory", None)
    stays = bool(ours) if target is None else is_simulated(target)
    if target is not None:
        options["device"] = torch.device("cpu")
    found = func(*plain, **options)
    if func is aten.copy_.default:
        return args[0]
    if not stays:
        return found
    wrapped = tree_map_only(
        Tensor, lambda tensor: tensor if isinstance(tensor, Simulated) else Simulated(tensor), found
    )
    if func._schema.is_mutable or any(value.alias_info is not None for value in func._schema.returns):
        with contextlib.suppress(RuntimeError):  # for views whose storage is not shared in this process
            return return_and_correct_aliasing(func, args, kwargs, wrapped)
    return wrapped


def check_devices(func: Any, ours: list[Simulated], tensors: list[Tensor]) -> None:
    """Raises: RuntimeError where CUDA raises one, for tensors of two devices."""
    if not ours or func in COPIES or func in INDEXED:
        return
    for tensor in tensors:
        if not isinstance(tensor, Simulated) and tensor.dim() > 0:
            devices = f"{NAME}:0 and {tensor.device}"
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {devices}! ({func})")


def wait_of(func: Any, args: tuple, kwargs: dict, ours: list[Simulated]) -> str | None:
    """Reason why the host waits in an operation; None if it does not."""
    if func in READING:
        return READING[func] if ours else None
    if func in INDEXED:
        masks = [index for index in args[1] if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)]
        uploads = [index for index in args[1] if isinstance(index, Tensor) and not isinstance(index, Simulated)]
        return "mask as an index" if ours and masks else "index uploaded" if ours and uploads else None
    if func is aten._to_copy.default:
        there = kwargs.get("device")
        moved = there is not None and is_simulated(there) != bool(ours)
        blocking = not (kwargs.get("non_blocking") and is_simulated(there))
        return ("downloaded" if ours else "uploaded") if moved and blocking else None
    if func is aten.copy_.default:
        moved = isinstance(args[0], Simulated) != isinstance(args[1], Simulated)
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        number = not isinstance(args[1], Simulated) and args[1].dim() == 0
        if moved and not number and not (non_blocking and isinstance(args[0], Simulated)):
            return "downloaded" if isinstance(args[1], Simulated) else "uploaded"
    return None


def is_simulated(device: Any) -> bool:
    """Whether a device, or its name, is the simulated one."""
    return device is not None and torch.device(device).type == NAME


class Backend:
    """The interface that torch requires of a device's module."""

    def is_initialized(self) -> bool:
        return True

    is_available = is_initialized

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Does nothing: the CPU's generator draws the random numbers."""

    manual_seed = synchronize = manual_seed_all

    def get_rng_state(self, *_: Any) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, *_: Any) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


FACTORIES = ("arange", "linspace", "logspace", "eye", "randperm", "tril_indices", "triu_indices")
FACTORIES += ("full", "zeros", "ones", "empty", "rand", "randn", "randint")


def on_the_device(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wraps a factory function to create the device's tensors on the CPU, because C++ resizes its result."""

    def made(*args: Any, device: Any = None, requires_grad: bool = False, **options: Any) -> Tensor:
        if is_simulated(device):
            return Simulated(make(*args, **options)).requires_grad_(requires_grad)
        return make(*args, **options, **{"device": device} if device is not None else {}, requires_grad=requires_grad)

    return made


def uploading(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Wraps a function that copies host data to the device, which waits."""

    def made(data: Any, *, dtype: Any = None, device: Any = None, **options: Any) -> Tensor:
        found = data if isinstance(data, Simulated) and make is AS_TENSOR else make(data, dtype=dtype, **options)
        return found.to(device=device or found.device, dtype=dtype or found.dtype)

    return made


def register() -> None:
    """Registers the device with torch."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    LIBRARY.fallback(lambda func, *args, **kwargs: compute(func, args, kwargs), "PrivateUse1")
    LIBRARY.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    ATEN.impl("silu_backward", lambda *args: compute(aten.silu_backward.default, args, {}), "PrivateUse1")
    torch.backends.cuda.enable_flash_sdp(False)  # the CPU's own attention kernel rounds differently
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    for name in FACTORIES:
        setattr(torch, name, on_the_device(getattr(torch, name)))
    torch.tensor, torch.as_tensor = uploading(torch.tensor), uploading(torch.as_tensor)


AS_TENSOR, LIBRARY = torch.as_tensor, torch.library.Library("_", "IMPL")
ATEN = torch.library.Library("aten", "IMPL")
"""For operations that devices without a kernel decompose, which rounds differently."""
register()

if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    from score_sde import run

    status = run.main(["run.py", *sys.argv[1:]])
    for place, number in waits.most_common():
        print(f"{number:6} {place}")
    sys.exit(status)
