"""The JSON file of a bench, and how one bench compares with an earlier one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gsopt.errors import InputError
from gsopt.rundir import read_json

FORMAT = "gsopt-bench"
VERSION = 1  # raised when something that is here already changes its name or meaning
SAME_MACHINE = ("cpu", "device", "isa", "torch")  # what else should be equal in a comparison


def document(machine: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """An empty report; "cases" and the studies, by name, are added to it."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "machine": dict(machine),
        "settings": dict(settings),
        "cases": [],
    }


def read_report(path: Path) -> dict[str, Any]:
    """An earlier report, for --compare. Raises InputError for a file that is none, or of another version."""
    report = read_json(path)
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise InputError(
            f"--compare {path}: expected a report of gsopt bench, found other JSON; "
            "write one with: gsopt bench --json FILE"
        )
    if report.get("version") != VERSION:
        raise InputError(
            f"--compare {path}: expected version {VERSION}, found {report.get('version')}; "
            "write it anew with this gsopt: gsopt bench --json FILE"
        )
    if not isinstance(report.get("machine"), dict) or not _all_cases(report.get("cases")):
        raise InputError(
            f"--compare {path}: expected a machine and cases with their times, found a damaged report; "
            "write it anew: gsopt bench --json FILE"
        )
    return report


def _all_cases(cases: Any) -> bool:
    return isinstance(cases, list) and all(isinstance(case, dict) and _is_case(case) for case in cases)


def _is_case(case: Mapping[str, Any]) -> bool:
    stages, per_matmul = case.get("stage_seconds"), case.get("per_matmul")
    times = [case.get("median_seconds"), case.get("least_seconds"), 1.0 if per_matmul is None else per_matmul]
    return (
        all(isinstance(time, float) and time > 0 for time in times)
        and all(isinstance(case.get(name), int) for name in ("gaussians", "width", "height"))
        and isinstance(stages, dict)
        and all(isinstance(seconds, float) for seconds in stages.values())
    )


def compare(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Ratios new / old of the cases that both reports have, under 1 where the new one is faster.

    Each has "name", "median", "least", "normalised" (the step by the matrix product measured beside it, None
    without one on either side) and "stages" by name (None where a stage took no time in either).
    """
    before = {_identity(case): case for case in old["cases"]}
    pairs = [(case, before[_identity(case)]) for case in new["cases"] if _identity(case) in before]
    return [
        {
            "name": now["name"],
            "median": now["median_seconds"] / then["median_seconds"],
            "least": now["least_seconds"] / then["least_seconds"],
            "normalised": _ratio(now["per_matmul"], then["per_matmul"]),
            "stages": {
                name: _ratio(seconds, then["stage_seconds"].get(name))
                for name, seconds in now["stage_seconds"].items()
            },
        }
        for now, then in pairs
    ]


def differences(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[str]:
    """What of the machine is not as it was: "isa avx2 -> avx512"."""
    now, then = new["machine"], old["machine"]
    return [f"{k} {then.get(k)} -> {now.get(k)}" for k in SAME_MACHINE if then.get(k) != now.get(k)]


def _identity(case: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(case.get(name) for name in ("name", "gaussians", "width", "height"))


def _ratio(new: float | None, old: float | None) -> float | None:
    return new / old if new and old else None
