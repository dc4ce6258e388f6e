"""The state_dicts in a file of torch.save that some other program laid out."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

DEPTH = 3  # levels of dicts and lists that are searched
STEPS = ("step", "global_step", "iteration", "iterations")  # keys for the number of steps
ORIGINAL = ("xyz", "f_dc", "f_rest", "scaling", "rotation", "opacity")  # order in `capture` of 3DGS

Place = tuple[str, ...]


@dataclass
class Found:
    """What :func:`search` found.

    Args:
        kind: of file, in words.
        optimizers: where each is in the file, its state_dict, and names of its parameters, unique over all.
        model: the tensors of the model by name.
        step: number of steps, None where the file does not tell.
        notes: what was taken for granted.
    """

    kind: str
    optimizers: list[tuple[str, Mapping[str, Any], list[str]]]
    model: dict[str, Tensor]
    step: int | None = None
    notes: list[str] = field(default_factory=list)


def search(content: Any) -> Found | None:
    """The model and the optimizers in the content of a file; None where there is neither."""
    if _is_original(content):
        captured, step = content
        model = dict(zip(ORIGINAL, captured[1:7], strict=True))
        optimizer = ("", captured[10], unique(names_of(captured[10])))
        return Found("checkpoint of the original 3DGS", [optimizer], flat(model), step)
    places = list(_walk(content, _is_optimizer))
    models = list(_walk(content, _is_model))
    if not places and not models:
        return None
    names = unique([name for _, optimizer in places for name in names_of(optimizer)])
    notes: list[str] = []
    model = _pick_model(models, set(names), notes)
    if len(places) == 1 and model and not has_names(places[0][1]):
        names = _names_by_order(places[0][1], names, model, notes)
    kind = "optimizer state" if not model else "file of torch" if places else "model state"
    rest = iter(names)
    optimizers = [
        (".".join(place), optimizer, [next(rest) for _ in names_of(optimizer)]) for place, optimizer in places
    ]
    return Found(kind, optimizers, model, _step_in(content), notes)


def has_names(optimizer: Mapping[str, Any]) -> bool:
    """Whether an `Optimizer.state_dict()` has the names of its parameters, or its groups' tell them."""
    groups = optimizer["param_groups"]
    return all("param_names" in group or ("name" in group and len(group["params"]) <= 1) for group in groups)


def names_of(optimizer: Mapping[str, Any]) -> list[str]:
    """A name for each parameter of an `Optimizer.state_dict()`, made of group and position if need be."""
    names = []
    for label, group in zip(labels_of(optimizer), optimizer["param_groups"], strict=True):
        alone = "name" in group and len(group["params"]) == 1
        made = [label if alone else f"{label}[{i}]" for i in range(len(group["params"]))]
        names += group.get("param_names", made)
    return names


def labels_of(optimizer: Mapping[str, Any]) -> list[str]:
    """A name for each group of an `Optimizer.state_dict()`."""
    return [str(g.get("name", f"group {i}")) for i, g in enumerate(optimizer["param_groups"])]


def unique(names: Iterable[str]) -> list[str]:
    """The same names, the second of its kind as "name (2)"."""
    times: Counter[str] = Counter()
    made = []
    for name in names:
        times[name] += 1
        made.append(name if times[name] == 1 else f"{name} ({times[name]})")
    return made


def flat(model: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a state_dict, or of a dict of them, by their full names."""
    tensors: dict[str, Tensor] = {}
    for name, value in model.items():
        if isinstance(value, Mapping):
            tensors |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            tensors[f"{prefix}{name}"] = value.detach()
    return tensors


def _walk(tree: Any, is_wanted: Callable[[Any], bool], place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Where in a tree of dicts and lists the wanted things are."""
    if is_wanted(tree):
        yield place, tree
    elif len(place) < DEPTH and isinstance(tree, Mapping | list | tuple) and not _is_optimizer(tree):
        entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in entries:
            yield from _walk(value, is_wanted, (*place, str(key)))


def _is_optimizer(value: Any) -> bool:
    if not isinstance(value, Mapping) or not {"state", "param_groups"} <= set(value):
        return False
    state, groups = value["state"], value["param_groups"]
    return (
        isinstance(state, Mapping)
        and all(isinstance(entry, Mapping) for index, entry in state.items() if isinstance(index, int))
        and isinstance(groups, list)
        and all(isinstance(group, Mapping) and _is_group(group) for group in groups)
    )


def _is_group(group: Mapping[str, Any]) -> bool:
    params = group.get("params")
    return isinstance(params, list) and len(group.get("param_names", params)) == len(params)


def _is_model(value: Any) -> bool:
    """Whether these are named tensors, some of real numbers; states of random generators have none."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) and isinstance(entry, Tensor) for key, entry in value.items())
        and any(entry.is_floating_point() or entry.is_complex() for entry in value.values())
    )


def _is_original(content: Any) -> bool:
    """Whether this is `(gaussians.capture(), iteration)` of the original 3DGS."""
    if not (isinstance(content, tuple) and len(content) == 2 and isinstance(content[0], tuple)):
        return False
    captured = content[0]
    return len(captured) == 12 and _is_optimizer(captured[10]) and _are_tensors(captured[1:7])


def _are_tensors(values: tuple) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def _pick_model(models: list[tuple[Place, Any]], names: set[str], notes: list[str]) -> dict[str, Tensor]:
    """The tensors that are most likely the optimizer's: with the most of its names, or the most numbers."""
    if not models:
        return {}
    place, model = max(
        models, key=lambda entry: (len(names & set(entry[1])), sum(t.numel() for t in entry[1].values()))
    )
    others = [".".join(other) for other, _ in models if other != place]
    if others:
        notes.append(f"tensors under {'.'.join(place)} are shown, not those under {', '.join(others)}")
    return flat(model)


def _names_by_order(
    optimizer: Mapping[str, Any], made: list[str], model: dict[str, Tensor], notes: list[str]
) -> list[str]:
    """The model's names in their order where number and shapes agree, as torch itself would match."""
    indices = [index for group in optimizer["param_groups"] for index in group["params"]]
    fits = len(indices) == len(model) and all(
        entry.shape == tensor.shape
        for index, tensor in zip(indices, model.values(), strict=True)
        for entry in optimizer["state"].get(index, {}).values()
        if isinstance(entry, Tensor) and entry.dim() > 0
    )
    if fits:
        notes.append("the optimizer's state has no names: the model's are given to it in order")
        return list(model)
    notes.append("the optimizer's state has no names, and its shapes are not the model's in order")
    return made


def _step_in(content: Any) -> int | None:
    if not isinstance(content, Mapping):
        return None
    return next((content[key] for key in STEPS if type(content.get(key)) is int), None)
