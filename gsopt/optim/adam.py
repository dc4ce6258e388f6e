"""Adam and AdamW of torch with their arithmetic in the CPU kernel: one call for all groups, on all threads.

State, options and results are those of torch's own classes, to float rounding; a `state_dict` of one loads
into the other. The bits do not depend on the number of threads.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gsopt.native import AdamTensor, check, is_plain, library, pointer


class _NativeStep:
    """`step` for a subclass of torch's Adam or AdamW."""

    @torch.no_grad()
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
        if not all(_fits(group, parameter) for group, parameter in moving):
            super().step()
        elif moving:
            updates = [self._update(group, parameter) for group, parameter in moving]
            check(library().gsopt_adam(len(updates), (AdamTensor * len(updates))(*updates)))
        return loss

    def _update(self, group: dict[str, Any], parameter: Tensor) -> AdamTensor:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        if state["step"].dtype != torch.float32:  # torch makes them of its default dtype
            state["step"] = state["step"].float()
        beta1, beta2 = group["betas"]
        return AdamTensor(
            parameter.data_ptr(),
            parameter.grad.data_ptr(),
            pointer(state["exp_avg"]),
            pointer(state["exp_avg_sq"]),
            pointer(state["step"]),
            *(None, None, parameter.numel(), 0),
            *(group["lr"], beta1, beta2, group["eps"], group["weight_decay"]),  # numbers, or tensors of one
            isinstance(self, torch.optim.AdamW) or group.get("decoupled_weight_decay", False),
            group["maximize"],
        )


def _fits(group: dict[str, Any], parameter: Tensor) -> bool:
    """Whether the kernel does what a group asks for; torch does what it lacks."""
    odd = group["amsgrad"] or group["capturable"] or group["differentiable"]
    return not odd and is_plain(parameter) and is_plain(parameter.grad)


class Adam(_NativeStep, torch.optim.Adam):
    """`torch.optim.Adam`; the CPU kernel does the steps where all parameters are its own float32."""


class AdamW(_NativeStep, torch.optim.AdamW):
    """`torch.optim.AdamW`; the CPU kernel does the steps where all parameters are its own float32."""


NATIVE = {torch.optim.Adam: Adam, torch.optim.AdamW: AdamW}
