"""Several optimizers as one, each for groups of its own."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class MixedOptimizer(Optimizer):
    """One optimizer for all groups; the key "optimizer" of a group names the part that updates it.

    Made by :func:`gsopt.build_optimizer`. To the outside it is an optimizer of torch like any other: one
    `step`, one `zero_grad`, one `param_groups` in the order given, one `state_dict`; a scheduler of torch may
    drive it. The parts see the very same group dicts and state, so what is changed from outside (learning
    rates, parameters that grow) is changed for them.

    Args:
        groups: all groups, each with the key "optimizer".
        parts: name to the optimizer that was built over the groups of that name.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], parts: Mapping[str, Optimizer]) -> None:
        self.parts = dict(parts)
        super().__init__(groups, {})
        for part in self.parts.values():  # Adagrad has state before its first step
            self.state.update(part.state)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every part; `closure` computes the loss once, as in torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._share()
        for part in self.parts.values():
            part.step()
        return loss

    def part_of(self, parameter: Tensor) -> Optimizer:
        """The optimizer that updates this parameter.

        Raises:
            ValueError: none does.
        """
        for group in self.param_groups:
            if any(parameter is other for other in group["params"]):
                return self.parts[group["optimizer"]]
        raise ValueError(f"MixedOptimizer: the parameter {list(parameter.shape)} is in none of its groups")

    def add_visible(self, parameters: nn.Module | Iterable[Tensor], rows: Tensor) -> None:
        """Hand on to the parts that can, `VisibleAdam`, which of the rows of their parameters to update.

        Raises:
            ValueError: as `VisibleAdam.add_visible`.
        """
        if isinstance(parameters, nn.Module):
            parameters = parameters.parameters(recurse=False)
        parameters = list(parameters)
        self._share()
        mine = {parameter for group in self.param_groups for parameter in group["params"]}
        if mine.isdisjoint(parameters):
            raise ValueError("add_visible: none of these parameters is the optimizer's; give those it trains")
        for part in self.parts.values():
            theirs = {parameter for group in part.param_groups for parameter in group["params"]}
            if hasattr(part, "add_visible") and not theirs.isdisjoint(parameters):
                part.add_visible(parameters, rows)

    def forget_visible(self) -> None:
        """Let all parts forget the rows that :func:`add_visible` named."""
        for part in self.parts.values():
            if hasattr(part, "forget_visible"):
                part.forget_visible()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After unpickling and `load_state_dict`."""
        if hasattr(self, "param_groups"):
            self._check_parts(state["param_groups"])
        super().__setstate__(state)
        self._share()
        for part in self.parts.values():
            part.__setstate__({"state": self.state, "param_groups": part.param_groups})

    def _check_parts(self, saved: list[dict[str, Any]]) -> None:
        for position, (group, theirs) in enumerate(zip(self.param_groups, saved, strict=True)):
            if group["optimizer"] != theirs.get("optimizer"):
                raise ValueError(
                    f"group {group.get('name', position)}: expected state of {group['optimizer']}, "
                    f"found that of {theirs.get('optimizer')}; load it with gsopt.load_optimizer_state"
                )

    def _share(self) -> None:
        """Let the parts work on the groups and the state of now, which loading replaces."""
        known = ", ".join(self.parts)
        for position, group in enumerate(self.param_groups):
            if group.get("optimizer") not in self.parts:
                raise ValueError(
                    f"group {group.get('name', position)}: optimizer: expected one of {known}, "
                    f"found {group.get('optimizer')}"
                )
        for name, part in self.parts.items():
            part.state = self.state
            part.param_groups = [group for group in self.param_groups if group["optimizer"] == name]
            for group in part.param_groups:  # one that was added since
                for option, value in part.defaults.items():
                    group.setdefault(option, value)
