"""Adam and AdamW of torch with their arithmetic in the CPU kernel: one call for all groups, on all threads.

State, options and results are those of torch's own classes, to float rounding; a `state_dict` of one loads
into the other. The bits do not depend on the number of threads.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gsopt.native import AdamTensor, check, library, pointer


class _NativeStep:
    """`step` for a subclass of torch's Adam or AdamW."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; `closure` computes the loss, as in torch."""
        if not self._fits():
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updates = [
            self._update(group, parameter)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if updates:
            check(library().gsopt_adam(len(updates), (AdamTensor * len(updates))(*updates)))
        return loss

    def _fits(self) -> bool:
        """Whether the kernel does what the groups ask for; torch does what it lacks."""
        return not any(
            group["amsgrad"] or group["capturable"] or group["differentiable"] for group in self.param_groups
        ) and all(
            is_plain(parameter) and (parameter.grad is None or is_plain(parameter.grad))
            for group in self.param_groups
            for parameter in group["params"]
        )

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
            parameter=parameter.data_ptr(),
            gradient=parameter.grad.data_ptr(),
            average=pointer(state["exp_avg"]),
            square=pointer(state["exp_avg_sq"]),
            count=pointer(state["step"]),
            n=parameter.numel(),
            lr=group["lr"],  # a number, or a tensor of one
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=isinstance(self, torch.optim.AdamW) or group.get("decoupled_weight_decay", False),
            maximize=group["maximize"],
        )


class Adam(_NativeStep, torch.optim.Adam):
    """`torch.optim.Adam`; the CPU kernel does the steps where all parameters are its own float32."""


class AdamW(_NativeStep, torch.optim.AdamW):
    """`torch.optim.AdamW`; the CPU kernel does the steps where all parameters are its own float32."""


NATIVE = {torch.optim.Adam: Adam, torch.optim.AdamW: AdamW}


def is_plain(tensor: Tensor) -> bool:
    """Whether the kernel can read it: contiguous float32 in the memory of the CPU."""
    return (
        tensor.is_cpu
        and tensor.dtype == torch.float32
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
    )
