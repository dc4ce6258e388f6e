"""A process among several that train: started here by `start`, or by torchrun as `gsopt train` that dies.

    python tests/ranked.py jobs FOLDER SCENE               # what FOLDER/jobs.json lists
    python tests/ranked.py dying STEP SIGNAL train ...     # process 1 gets the signal, once, in that step

A job is one of the functions of JOBS with its arguments. What it returns, or the error it ends with, goes
into FOLDER/answers-RANK.json, by the job's name.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import resuming
import torch

from gsopt import ranks
from gsopt.config import TrainConfig
from gsopt.datasets import pyramid
from gsopt.errors import InputError
from gsopt.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]


def start(folder: Path, scene: Path, jobs: dict[str, list], processes: int = 2) -> list[dict[str, Any]]:
    """Do all jobs in so many processes; the answers of each."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_PORT": port}
    started = []
    for rank in range(processes):
        own = group | {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
        environment = os.environ | {name: str(value) for name, value in own.items()}
        program = [sys.executable, __file__, "jobs", str(folder), str(scene)]
        started.append(subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(errors)
    return [json.loads((folder / f"answers-{rank}.json").read_text()) for rank in range(processes)]


# ------------------------------------------------------------------------------------------------- the jobs


def straight(scene: Path, case: str, folder: str, settings: dict[str, Any]) -> None:
    """A case of `resuming`, with some more settings."""
    known = resuming.CASES[case]
    resuming.straight(replace(known, settings=known.settings | settings), scene, Path(folder))


def resumed(_: Path, folder: str, settings: dict[str, Any]) -> None:
    """Go on with a run that one process began."""
    Trainer(replace(TrainConfig.of_run(Path(folder)), **settings)).train()


def small(scene: Path, folder: str, **settings: Any) -> Trainer:
    strategy = resuming.STRATEGIES["default"]
    common = {"device": "cpu", "quiet": True, "iterations": 12, "test_iterations": (), "save_iterations": ()}
    return Trainer(TrainConfig(scene=scene, output=Path(folder), **(common | strategy | settings)))


def not_finite(scene: Path, folder: str, on_nan: str) -> list[Any]:
    """In step 4, which begins with a random background, the gradient in process 1 is not finite."""
    trainer = small(scene, folder, on_nan=on_nan, background="random", checkpoint_every=1)
    backward = trainer._backward

    def spoilt(*of_view):
        seen = backward(*of_view)
        if trainer.step == 4 and trainer.ranks.rank == 1:
            raise ranks.NonFinite(f"iteration {trainer.step}: spoilt")
        return seen

    trainer._backward = spoilt
    trainer.train()
    return [trainer.step, trainer.skipped, trainer.views_per_step]


def stopped(scene: Path, folder: str) -> None:
    """Process 1 alone gets SIGTERM, in step 5."""
    trainer = small(scene, folder)
    backward = trainer._backward

    def asked(*of_view):
        if trainer.step == 5 and trainer.ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(*of_view)

    trainer._backward = asked
    trainer.train()


def torn(scene: Path, folder: str) -> list[str]:
    """One bit more in process 1, then a row less: what the looks at all processes say."""
    trainer, found = small(scene, folder, strategy="none"), []
    trainer.train_step()
    trainer.ranks.check_same(trainer)
    if trainer.ranks.rank == 1:
        value = trainer.model.scaling.data[7, 1]
        trainer.model.scaling.data[7, 1] = torch.nextafter(value, value + 1)
    for look in (lambda: trainer.ranks.check_same(trainer), trainer.train_step):
        try:
            look()
        except InputError as error:
            found.append(str(error))
        if trainer.ranks.rank == 1:
            trainer.model = trainer.joint.model = type(trainer.model).from_points(*torch.rand(2, 9, 3))
            trainer.direct = None
    return found


def cached(scene: Path, folder: str) -> list[int]:
    """All processes make the cache of one scene, and train from it: the bits of photos and model."""
    trainer = small(scene, folder, cache="disk")
    views = [*trainer.scene.train, *trainer.scene.test]
    assert all(view.mapped for view in views)
    trainer.train()
    return [ranks.digest(tensor) for tensor in [*(view.image for view in views), *trainer.model.parameters()]]


def sums(_: Path) -> list[Any]:
    """What the exchanges give: of numbers whose sum depends on its order, of gradients that are missing."""
    group = ranks.Ranks.current()
    parameters = [torch.nn.Parameter(torch.zeros(5)) for _ in range(3)]
    parameters[0].grad = torch.tensor([1.0, 1e8, -1e8, 0.1, float(group.rank)]) / (group.rank + 1)
    if group.rank == 1:
        parameters[1].grad = torch.arange(5.0)
    group.sum_gradients(torch.optim.SGD(parameters, lr=1.0))
    return [
        [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters],
        list(group.map(lambda word: word * (group.rank + 1), ["a", "b", "c"])),
        group.any(7 if group.rank == 1 else None),
        group.tell(lambda: "x" * 5_000 * (group.rank + 1)) == "x" * 5_000,
        group.deal(range(7)),
    ]


def failed(_: Path) -> None:
    """Process 1 fails alone; the others hear of it."""
    group = ranks.Group()
    with group.together():
        if group.rank == 1:
            raise InputError("no such photo")
        group.any(None)


def late(_: Path) -> None:
    """Process 1 does not answer. Nothing can come after this."""
    group = ranks.Group()
    if group.rank == 1:
        time.sleep(8)
    else:
        group.any(None)


JOBS: dict[str, Callable] = {
    job.__name__: job for job in (straight, resumed, not_finite, stopped, torn, cached, sums, failed, late)
}


def do_jobs(folder: Path, scene: Path) -> None:
    jobs = json.loads((folder / "jobs.json").read_text())
    pyramid.SMALLEST = resuming.LEAST_PIXELS
    os.fsync = lambda descriptor: None
    if any(job == "late" for job, *_ in jobs.values()):
        ranks.TIMEOUT = timedelta(seconds=3)
    answers: dict[str, Any] = {}
    with ranks.joined() as group:
        for name, (job, *arguments) in jobs.items():
            try:
                answers[name] = JOBS[job](scene, *arguments)
            except (InputError, KeyboardInterrupt) as error:
                answers[name] = f"{type(error).__name__}: {error}"
        (folder / f"answers-{group.rank}.json").write_text(json.dumps(answers))
        if group.broken or "late" in answers:
            os._exit(0)


def die(step: int, number: int, argv: list[str]) -> int:
    from gsopt.commands import main

    backward = Trainer._backward

    def dying(trainer: Trainer, *of_view: Any) -> Any:
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if trainer.step == step and trainer.ranks.rank == 1 and first:
            os.kill(os.getpid(), number)
        return backward(trainer, *of_view)

    Trainer._backward = dying
    return main(argv)


if __name__ == "__main__":
    if sys.argv[1] == "jobs":
        do_jobs(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(die(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
