"""What became of the photos: as JSON, and as lines for the terminal."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gsopt.errors import InputError
from gsopt.prepare.settings import FEWEST
from gsopt.text import listed


def best_model(models: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """That with the most photos, and of such with as many that with the most points."""
    return max(models, key=lambda model: (len(model["photos"]), model["points"]))


def check_models(found: Mapping[str, Any], source: str) -> None:
    """Raise InputError where no model was found, with what is known about why."""
    if found["models"]:
        return
    photos = found["photos"].values()
    matched = [photo["matched"] for photo in photos]
    features = sorted(photo["features"] for photo in photos)[len(matched) // 2]
    raise InputError(
        f"{source}: none of the {len(matched)} photos could be placed: a median of {features:,} features in "
        f"a photo, {sum(count > 0 for count in matched)} photos share some with another; take photos that "
        f"overlap by two thirds, from places apart, of things with texture ({FEWEST} or more)"
    )


def dropped(found: Mapping[str, Any], unreadable: Mapping[str, str]) -> dict[str, str]:
    """Why each photo that is not in the scene is not."""
    best = best_model(found["models"])
    inside = set(best["photos"])
    elsewhere = {
        name: model["folder"]
        for model in found["models"]
        if model is not best
        for name in model["photos"]
        if name not in inside
    }
    reasons = dict(unreadable)
    for name, photo in found["photos"].items():
        if name in inside:
            continue
        if name in elsewhere:
            reasons[name] = "in another model, which shares too little with this one"
        elif photo["features"] == 0:
            reasons[name] = "no features in it: blurred, dark, or without texture"
        elif photo["matched"] == 0:
            reasons[name] = f"its {photo['features']:,} features are in no other photo"
        else:
            reasons[name] = f"shares features with {photo['matched']} photos, too few to place it"
    return dict(sorted(reasons.items()))


def make_report(
    versions: Mapping[str, str], stages: Mapping[str, Any], reasons: Mapping[str, str]
) -> dict[str, Any]:
    """prepare.json, but for its version: see docs/prepare.md."""
    found, read = stages["models"]["result"], stages["photos"]["result"]
    best = best_model(found["models"])
    settings: dict[str, Any] = {}
    for stage in stages.values():
        settings |= stage["settings"]
    return {
        "made_by": dict(versions),
        "settings": settings,
        "photos": {
            "found": len(read["photos"]) + len(read["unreadable"]),
            "registered": len(best["photos"]),
            "dropped": dict(reasons),
        },
        "points": best["points"],
        "mean_reprojection_error": best["reprojection_error"],
        "mean_track_length": best["track_length"],
        "cameras": {"photos": best["cameras"], "scene": stages["scene"]["result"]["cameras"]},
        "other_models": [
            {"photos": len(model["photos"]), "points": model["points"]}
            for model in found["models"]
            if model is not best
        ],
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
    }


def lines(report: Mapping[str, Any], scene: Path) -> list[str]:
    """The report for the terminal."""
    photos, cameras = report["photos"], report["cameras"]
    out = [
        f"photos    {photos['registered']} of {photos['found']} are in the scene",
        f"points    {report['points']:,}, seen in {report['mean_track_length']:.2f} photos in the mean, "
        f"mean reprojection error {report['mean_reprojection_error']:.2f} pixels",
    ]
    for before, after in zip(cameras["photos"], cameras["scene"], strict=True):
        angle = 2 * math.degrees(math.atan(after["width"] / (2 * after["params"][0])))
        sizes = [f"{camera['width']}x{camera['height']}" for camera in (before, after)]
        out.append(
            f"camera    {before['model']} of {before['photos']} photos, {sizes[0]}, undistorted {sizes[1]}, "
            f"{angle:.0f} degrees wide"
        )
    out += [f"dropped   {name}: {reason}" for name, reason in list(photos["dropped"].items())[:20]]
    if len(photos["dropped"]) > 20:
        out.append(f"dropped   {listed(list(photos['dropped'])[20:])}")
    if report["other_models"]:
        found = ", ".join(str(model["photos"]) for model in report["other_models"])
        out.append(f"models    the largest is taken; others of {found} photos have no place in it")
    out.append(f"scene     {scene}, in {sum(report['seconds'].values()):.0f} s; the same is in prepare.json")
    return out
