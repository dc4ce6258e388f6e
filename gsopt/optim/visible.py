"""Adam that updates only the rows that a step has seen, each with a step count of its own.

A Gaussian that no camera of a step sees has no gradient in it. Plain Adam moves it all the same, by the
momentum it has, and lets its moments fade. Here it rests: value, moments and step count keep their bits. The
idea is that of the "sparse Adam" of Taming 3DGS (Mallick et al. 2024), which the original 3DGS took over, and
of gsplat's `SelectiveAdam`. Those correct no bias, so a row's first update is of 3.2 learning rates, as it is
in plain Adam for a row that densification adds late in a run. Here the bias correction of each row is its
own, and its first update is of one learning rate.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gsopt.native import AdamTensor, check, is_plain, library, pointer


class VisibleAdam(Optimizer):
    """Adam of the rows that were seen since the last step; equal to Adam where all are seen at every step.

        optimizer = gsopt.VisibleAdam(gsopt.build_groups(model, specs))
        loss.backward()
        optimizer.add_visible(model, (info["radii"] > 0).all(dim=-1).any(dim=0))
        optimizer.step()

    State of a parameter [N, ...]: `step` [N], float32, the updates each row has had; `exp_avg` and
    `exp_avg_sq` as in Adam. All three belong to the rows (`per_row_state`), so `gsopt.surgery` moves them.

    Args:
        params: parameters, named parameters or groups, as for any optimizer of torch.
        lr: learning rate, 0 or more.
        betas: how much of the moments stays in an update; each at least 0 and below 1.
        eps: added to the root of the second moment; 0 or more. 1e-15 as in 3DGS: gradients there are tiny.
        weight_decay: 0 or more, added to the gradient as in Adam; only rows that are updated decay.
        decoupled_weight_decay: let it shrink the values instead, as in AdamW.
        maximize: climb instead of descending.
        bias_correction: divide the moments of a row by what they lack since its first update. False: as in
            Taming 3DGS and gsplat, and the first updates of every row are longer than the rate.
        fused: the CPU kernel updates what is float32 on a CPU, all parameters in one call, with the same bits
            on any number of threads. False: plain tensor operations, as everywhere else.

    Raises:
        ValueError: an option is out of range.
    """

    per_row_state = ("step", "exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        bias_correction: bool = True,
        fused: bool = True,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name}: expected 0 or more, found {value}")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas: expected two numbers of at least 0 and below 1, found {betas}")
        self._visible: dict[Tensor, Tensor] = {}
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        options |= {"decoupled_weight_decay": decoupled_weight_decay, "maximize": maximize}
        super().__init__(params, options | {"bias_correction": bias_correction, "fused": fused})

    def add_visible(self, parameters: nn.Module | Iterable[Tensor], rows: Tensor) -> None:
        """Let the next step update these rows of some parameters, and no other rows of theirs.

        Several calls before a step, as for several views, let it update what any of them names. Parameters
        that no call names are updated whole. The step forgets what was named.

        Args:
            parameters: a module, for the parameters of its own (not of its parts), such as a
                `GaussianModel`; or parameters.
            rows: which: bool [N], N the first dimension of all of the parameters.

        Raises:
            ValueError: `rows` is no mask of all rows, or no parameter is one of this optimizer's.
        """
        if isinstance(parameters, nn.Module):
            parameters = parameters.parameters(recurse=False)
        mine = {parameter for group in self.param_groups for parameter in group["params"]}
        found = [parameter for parameter in parameters if parameter in mine]
        if not found:
            raise ValueError("add_visible: none of these parameters is the optimizer's; give those it trains")
        for parameter in found:
            if rows.dtype != torch.bool or rows.shape != parameter.shape[:1] or parameter.dim() == 0:
                raise ValueError(
                    f"add_visible: rows: expected a mask, bool {list(parameter.shape[:1])} for a parameter "
                    f"{list(parameter.shape)}, found {rows.dtype} {list(rows.shape)}"
                )
        for parameter in found:
            known = self._visible.get(parameter)
            own = rows.to(parameter.device).contiguous()
            self._visible[parameter] = own if known is None else known | own

    def forget_visible(self) -> None:
        """Forget the rows that :func:`add_visible` named, for a step that is not taken."""
        self._visible = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the rows that were seen; `closure` computes the loss, as in torch.

        Raises:
            ValueError: rows were named of a parameter that has since been replaced.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        visible, self._visible = self._visible, {}
        self._check_present(visible)
        updates = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state, rows = self._state_of(parameter), visible.get(parameter)
                if group["fused"] is not False and is_plain(parameter) and is_plain(parameter.grad):
                    updates.append(_kernel_update(parameter, state, rows, group))
                else:
                    update_rows(parameter, parameter.grad, state, rows, group)
        if updates:
            check(library().gsopt_adam(len(updates), (AdamTensor * len(updates))(*updates)))
        return loss

    def adopt_state(self, parameter: Tensor, state: Mapping[str, Any]) -> dict[str, Any]:
        """State that was saved for `parameter`; where it is Adam's, the one step count becomes each row's."""
        if "step" not in state:
            return dict(state)
        step = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)
        return {**state, "step": step.repeat(parameter.shape[:1]) if step.dim() == 0 else step}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After unpickling and `load_state_dict`, also of Adam's; torch leaves steps on the saved device."""
        self._visible = {}
        super().__setstate__(state)
        self.defaults.pop("differentiable", None)  # which torch adds: groups would differ after a resume
        for group in self.param_groups:
            for option, value in self.defaults.items():  # what Adam's groups lack
                group.setdefault(option, value)
            for parameter in group["params"]:
                if entries := self.state.get(parameter):
                    entries.update(self.adopt_state(parameter, entries))

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        if parameter.grad is not None and parameter.grad.is_sparse:
            raise ValueError("VisibleAdam: expected a dense gradient, found a sparse one; name rows instead")
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(parameter.shape[:1], device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def _check_present(self, visible: Mapping[Tensor, Tensor]) -> None:
        mine = {parameter for group in self.param_groups for parameter in group["params"]}
        if not visible.keys() <= mine:
            raise ValueError(
                "VisibleAdam: rows were changed between add_visible and step; change them after the step"
            )


def visible_rows(info: Mapping[str, Any]) -> Tensor:
    """The Gaussians that any camera of a rendering saw, those with a radius. bool [N]

    Args:
        info: from `gsopt.rasterization` or gsplat's, with ``packed=False``.

    Raises:
        ValueError: `info` is of a packed rendering, which does not tell the number of Gaussians.
    """
    radii = info["radii"]  # int [C, N, 2]
    if radii.dim() != 3:
        raise ValueError(
            f"info: expected radii [C, N, 2], found {list(radii.shape)}; render with packed=False"
        )
    return ((radii[..., 0] > 0) & (radii[..., 1] > 0)).any(dim=0)  # all(dim=-1) takes four times as long


def update_rows(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    rows: Tensor | None,
    group: Mapping[str, Any],
) -> None:
    """One update of some rows in plain tensor operations, in place: the slow twin of the kernel.

    Args:
        parameter, gradient: [N, ...]
        state: `step` [N], `exp_avg` and `exp_avg_sq` [N, ...].
        rows: which, bool [N]; None for all.
        group: options of the parameter's group.
    """
    tensors = (parameter, state["exp_avg"], state["exp_avg_sq"], state["step"])
    if rows is None:
        _update(gradient, *tensors, group)
        return
    index = torch.nonzero(rows).flatten()
    chosen = parameter[index], state["exp_avg"][index], state["exp_avg_sq"][index], state["step"][index]
    _update(gradient[index], *chosen, group)
    for tensor, part in zip(tensors, chosen, strict=True):
        tensor[index] = part


def _update(
    gradient: Tensor,
    parameter: Tensor,
    average: Tensor,
    square: Tensor,
    step: Tensor,
    group: Mapping[str, Any],
) -> None:
    """Algorithm 1 of Kingma and Ba 2015 in place, with a step count for each row."""
    lr, (beta1, beta2) = float(group["lr"]), group["betas"]
    decay = group["weight_decay"]
    gradient = -gradient if group["maximize"] else gradient
    if decay and group["decoupled_weight_decay"]:
        parameter.mul_(1 - lr * decay)
    elif decay:
        gradient = gradient.add(parameter, alpha=decay)
    average.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    step += 1
    if not group["bias_correction"]:
        parameter.sub_(lr * average / (square.sqrt() + group["eps"]))
        return
    count = step.double().view((*step.shape, *[1] * (parameter.dim() - step.dim())))
    kind = torch.promote_types(parameter.dtype, torch.float32)
    step_size = (lr / (1 - beta1**count)).to(kind)
    root = (1 - beta2**count).sqrt().to(kind)
    parameter.sub_(step_size * average / (square.sqrt() / root + group["eps"]))


def _kernel_update(
    parameter: Tensor, state: dict[str, Tensor], rows: Tensor | None, group: Mapping[str, Any]
) -> AdamTensor:
    beta1, beta2 = group["betas"]
    return AdamTensor(
        parameter=pointer(parameter),
        gradient=pointer(parameter.grad),
        average=pointer(state["exp_avg"]),
        square=pointer(state["exp_avg_sq"]),
        steps=pointer(state["step"]),
        visible=pointer(rows),
        n=parameter.numel(),
        rows=state["step"].numel(),
        lr=float(group["lr"]),
        beta1=float(beta1),
        beta2=float(beta2),
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        decoupled=group["decoupled_weight_decay"],
        maximize=group["maximize"],
        uncorrected=not group["bias_correction"],
    )
