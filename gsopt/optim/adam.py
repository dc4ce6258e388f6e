"""Adam and AdamW of torch with their arithmetic in the CPU kernel: one call for all groups, on all threads.

State, options and results are those of torch's own classes, to float rounding; a `state_dict` of one loads
into the other. The bits do not depend on the number of threads.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gsopt.native import AdamTensor, check, is_plain, library, pointer

if TYPE_CHECKING:
    from torch.optim import Optimizer as _Base
else:
    _Base = object


class _NativeStep(_Base):
    """`step` for a subclass of torch's Adam or AdamW."""

    records_nothing = True  # for autograd: nothing of torch touches a parameter

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; `closure` computes the loss, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = [
            (group, parameter)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        plain = all(is_plain(parameter) and is_plain(parameter.grad) for _, parameter in moving)
        settings = [found for group, _ in moving if (found := _settings(group)) is not None]
        if not plain or len(settings) < len(moving):
            super().step()
        elif moving:
            check(library().gsopt_adam(len(moving), self._arguments(moving, settings)))
        return loss

    def _arguments(
        self, moving: Sequence[tuple[dict[str, Any], Tensor]], settings: Sequence[tuple]
    ) -> ctypes.Array:
        """What the kernel is to do; the last step's, brought up to date, where no tensor has moved."""
        states = [self._state_of(parameter) for _, parameter in moving]
        places = [
            (parameter.data_ptr(), parameter.numel(), *(tensor.data_ptr() for tensor in state))
            for (_, parameter), state in zip(moving, states, strict=True)
        ]
        *known, arguments = self.__dict__.get("_known", (None,))
        if known != [places, settings]:
            arguments = (AdamTensor * len(moving))(
                *(
                    AdamTensor(pointer(parameter), None, *map(pointer, state), n=parameter.numel())
                    for (_, parameter), state in zip(moving, states, strict=True)
                )
            )
            for argument, values in zip(arguments, settings, strict=True):
                argument.beta1, argument.beta2 = values[0]
                argument.eps, argument.weight_decay, argument.maximize, decoupled = values[1:]
                argument.decoupled = decoupled or isinstance(self, torch.optim.AdamW)
            self._known = places, settings, arguments
        for argument, (group, parameter) in zip(arguments, moving, strict=True):
            argument.gradient = parameter.grad.data_ptr()  # type: ignore[union-attr]  # it has one
            argument.lr = group["lr"]  # a number, or a tensor of one
        return arguments

    def _state_of(self, parameter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both moments and the count of steps; made if need be."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        if state["step"].dtype != torch.float32:  # torch makes them of its default dtype
            state["step"] = state["step"].float()
        return state["exp_avg"], state["exp_avg_sq"], state["step"]


def _settings(group: dict[str, Any]) -> tuple | None:
    """Betas, eps, weight decay and the like of a group; None where torch has to do what the kernel lacks."""
    if group["amsgrad"] or group["capturable"] or group["differentiable"]:
        return None
    decoupled = group.get("decoupled_weight_decay", False)
    return group["betas"], group["eps"], group["weight_decay"], group["maximize"], decoupled


class Adam(_NativeStep, torch.optim.Adam):
    """`torch.optim.Adam`; the CPU kernel does the steps where all parameters are its own float32."""


class AdamW(_NativeStep, torch.optim.AdamW):
    """`torch.optim.AdamW`; the CPU kernel does the steps where all parameters are its own float32."""


NATIVE = {torch.optim.Adam: Adam, torch.optim.AdamW: AdamW}
