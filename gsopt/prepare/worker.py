"""The process in which COLMAP works: one stage, then it ends.

    python -P gsopt/prepare/worker.py < job        # started by `prepare.process`

A process of its own, because COLMAP may abort or be killed, because Python cannot interrupt it, and because a
second SQLite in the process that has a database open (Python's, to count its rows) takes its locks away. It
is started by its path and imports nothing of gsopt, which would import torch.

In: one line of JSON on stdin, the job. The other end of stdin is held open for as long as the result is
wanted: when it closes, the process ends at once. Out: lines of JSON on stdout, {"done": n} on the way, at
last {"result": ...} or {"error": text}. What COLMAP says goes to stderr.
"""

import json
import os
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

MODEL_FILES = ("cameras.bin", "images.bin", "points3D.bin", "rigs.bin", "frames.bin")


def features(job: dict[str, Any], out: TextIO) -> dict[str, Any]:
    """Cameras and SIFT features of all photos into a new database; one camera for each group of them."""
    import pycolmap

    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = job["camera_model"]
    options = pycolmap.FeatureExtractionOptions()
    options.use_gpu = False
    options.num_threads = job["threads"]
    options.max_image_size = job["feature_size"]
    options.sift.max_num_features = job["max_features"]
    pycolmap.Database.open(job["database"]).close()  # makes it
    for names in job["groups"]:  # first, so that ids do not depend on which thread is done when
        pycolmap.import_images(
            **{"database_path": job["database"], "image_path": job["photos"], "image_names": names},
            **{"camera_mode": pycolmap.CameraMode.SINGLE, "options": reader},
        )
    pycolmap.extract_features(
        **{"database_path": job["database"], "image_path": job["photos"], "image_names": job["names"]},
        **{"reader_options": reader, "extraction_options": options, "device": pycolmap.Device.cpu},
    )
    return {}


def matches(job: dict[str, Any], out: TextIO) -> dict[str, Any]:
    """Matches of features and the geometry of each pair of photos, into the database."""
    import pycolmap

    options = pycolmap.FeatureMatchingOptions()
    options.use_gpu = False
    options.num_threads = job["threads"]
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = job["seed"]
    match = {"exhaustive": pycolmap.match_exhaustive, "sequential": pycolmap.match_sequential}
    match[job["matching"]](
        **{"database_path": job["database"], "matching_options": options},
        **{"verification_options": verification, "device": pycolmap.Device.cpu},
    )
    return {}


def models(job: dict[str, Any], out: TextIO) -> dict[str, Any]:
    """Poses, lenses and points: as many models as the photos fall into, in folders 0, 1, ..."""
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = job["threads"]
    options.random_seed = job["seed"]
    options.min_model_size = job["fewest"]
    # Sums of several threads are rounded in another order each time.
    options.ba_min_num_residuals_for_cpu_multi_threading = 2**31 - 1
    placed = Counter()

    def count() -> None:
        placed["photos"] += 1
        _say(out, {"done": placed["photos"]})

    pycolmap.incremental_mapping(
        **{"database_path": job["database"], "image_path": job["photos"], "output_path": job["output"]},
        **{"options": options, "next_image_callback": count},
    )
    found = sorted(Path(job["output"]).iterdir(), key=lambda path: int(path.name))
    return {
        "models": [_described(pycolmap.Reconstruction(folder), folder.name) for folder in found],
        "photos": _statistics(pycolmap.Database.open(job["database"])),
    }


def _described(model: Any, folder: str) -> dict[str, Any]:
    """A model in numbers; reprojection errors in pixels of the photos."""
    images = [image for image in model.images.values() if image.has_pose]
    used = Counter(image.camera_id for image in images)
    return {
        "folder": folder,
        "photos": sorted(image.name for image in images),
        "points": model.num_points3D(),
        "reprojection_error": model.compute_mean_reprojection_error(),
        "track_length": model.compute_mean_track_length(),
        "cameras": [
            {
                "model": camera.model_name,
                "width": camera.width,
                "height": camera.height,
                "params": camera.params.tolist(),
                "photos": used[number],
            }
            for number, camera in sorted(model.cameras.items())
            if used[number]
        ],
    }


def _statistics(database: Any) -> dict[str, dict[str, int]]:
    """Of each photo: how many features it has, and with how many other photos they agree."""
    images = {image.image_id: image.name for image in database.read_all_images()}
    pairs = Counter()
    for number, geometry in zip(*database.read_two_view_geometries(), strict=True):
        if len(geometry.inlier_matches):
            import pycolmap

            pairs.update(pycolmap.pair_id_to_image_pair(number))
    found = {
        name: {"features": database.num_keypoints_for_image(number), "matched": pairs[number]}
        for number, name in images.items()
    }
    database.close()
    return found


def scene(job: dict[str, Any], out: TextIO) -> dict[str, Any]:
    """A model with its photos as pinhole cameras see them: images/ and sparse/0 in a new folder."""
    import pycolmap

    output = Path(job["output"])
    options = pycolmap.UndistortCameraOptions()
    options.max_image_size = job["max_size"]
    pycolmap.undistort_images(
        **{"output_path": output, "input_path": job["model"], "image_path": job["photos"]},
        **{"undistort_options": options, "jpeg_quality": 95, "num_threads": job["threads"]},
    )
    model = output / "sparse" / "0"
    model.mkdir()
    for name in MODEL_FILES:
        (output / "sparse" / name).replace(model / name)
    return {"cameras": _described(pycolmap.Reconstruction(model), "0")["cameras"]}


STAGES = {"features": features, "matches": matches, "models": models, "scene": scene}


def _say(out: TextIO, message: dict[str, Any]) -> None:
    print(json.dumps(message), file=out, flush=True)


def _end_with_parent() -> None:
    while sys.stdin.readline():
        pass
    os._exit(1)  # COLMAP's own threads would go on


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # nothing that COLMAP prints gets between the lines of JSON
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import pycolmap

    pycolmap.logging.logtostderr = True
    pycolmap.set_random_seed(job["seed"])
    try:
        result = STAGES[job["stage"]](job, out)
    except (ValueError, RuntimeError, IndexError, KeyError, OSError) as error:
        _say(out, {"error": " ".join(str(error).split()) or type(error).__name__})
    else:
        _say(out, {"result": result})
    out.close()
    os._exit(0)  # not waiting for the thread that listens


if __name__ == "__main__":
    main()
