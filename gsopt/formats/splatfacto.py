"""`step-N.ckpt` of nerfstudio's splatfacto, read with its moments.

The file is `torch.save({"step": N, "pipeline": {...}, "optimizers": {...}, "schedulers": ..., "scalers":
...})`; N counts from 0. The model is in `pipeline` under `_model.gauss_params.` (`_model.` before 1.0):

    means          [N, 3]
    scales         [N, 3]      logarithms
    quats          [N, 4]      w x y z
    features_dc    [N, 3]
    features_rest  [N, K-1, 3]  coefficient first
    opacities      [N, 1]      logits

and `optimizers` has the state_dict of one Adam for each of these names, with one parameter.

nerfstudio trains in coordinates of its own, which its `dataparser_transforms.json` relates to the scene's.
"""

from pathlib import Path
from typing import Any

from gsopt.errors import InputError
from gsopt.formats.splat import Splat, checked, taken_moments

NAMES = {
    "xyz": "means",
    "feature_dc": "features_dc",
    "feature_rest": "features_rest",
    "scaling": "scales",
    "rotation": "quats",
    "opacity": "opacities",
}
_PREFIXES = ("_model.gauss_params.", "_model.")


def is_splatfacto(content: Any) -> bool:
    """Whether the content of a torch file is a checkpoint of nerfstudio."""
    return isinstance(content, dict) and isinstance(content.get("pipeline"), dict)


def from_content(path: Path, content: Any) -> Splat:
    """The Gaussians, moments and step in such a checkpoint.

    Raises:
        InputError: a checkpoint of another method, or entries of other shapes.
    """
    pipeline = {str(key).removeprefix("module."): value for key, value in content["pipeline"].items()}
    prefix = next((prefix for prefix in _PREFIXES if f"{prefix}means" in pipeline), _PREFIXES[0])
    if missing := [name for name in NAMES.values() if prefix + name not in pipeline]:
        raise InputError(
            f"{path}: pipeline: no {', '.join(prefix + name for name in missing)}; "
            "give a checkpoint of nerfstudio's splatfacto"
        )
    step = content.get("step")
    splat = Splat(
        checked(path, {key: pipeline[prefix + name] for key, name in NAMES.items()}, NAMES),
        "checkpoint of nerfstudio's splatfacto",
        step=step + 1 if type(step) is int and step >= 0 else None,
        notes=["in nerfstudio's coordinates; dataparser_transforms.json beside its config relates them"],
    )
    found = _states(path, content.get("optimizers", {}))
    splat.moments = taken_moments(splat, path, found, NAMES)
    if lacking := [NAMES[name] for name in NAMES if name not in found]:
        splat.notes.append(f"no moments of {', '.join(lacking)}: training from it starts with fresh ones")
    return splat


def _states(path: Path, optimizers: Any) -> dict[str, dict[str, Any]]:
    """State of each attribute's own optimizer, which has one parameter."""
    found = {}
    try:
        for attribute, name in NAMES.items():
            state = optimizers[name]["state"] if name in optimizers else {}
            if state:
                (found[attribute],) = (dict(entries) for entries in state.values())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: optimizers.{name}: expected the state_dict of an optimizer of one parameter, found "
            f"something else ({type(error).__name__}: {error}); save it again"
        ) from None
    return found
