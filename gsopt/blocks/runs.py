"""The runs of a partition: one for each block, as `gsopt.sweep.runner` trains them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gsopt.blocks.partition import Block, Partition
from gsopt.config import TrainConfig
from gsopt.device import cpu_count, pick_device
from gsopt.errors import InputError
from gsopt.rundir import RunFolder, read_json
from gsopt.sweep.grid import Configuration, Run


def plan(partition: Partition, base: TrainConfig, iterations: Callable[[Block], int], jobs: int) -> list[Run]:
    """The run of each block: `base` with its scene, and as many iterations as `iterations` says.

    Raises InputError, naming the block, for settings that cannot be used.
    """
    runs = []
    for block in partition.blocks:
        folder = partition.run_of(block)
        config = replace(
            base,
            scene=partition.scene_of(block),
            output=folder.path,
            iterations=iterations(block),
            threads=base.threads or max(1, cpu_count() // jobs),
        )
        try:
            config.check()
            config = config.resolved(pick_device(config.device, config.backend).type)
        except InputError as error:
            raise InputError(f"{block.name}: {error}") from None
        runs.append(Run(Configuration(block.name, {}, ()), config.seed, config, folder))
    return runs


def elsewhere(partition: Partition, block: Block) -> bool:
    """Whether there is the whole run of a block that was trained at another place, with whatever settings."""
    folder = partition.run_of(block)
    if not (folder.config.is_file() and folder.metrics.is_file()):
        return False
    scene = TrainConfig.of_run(folder.path).scene
    if scene is None or scene.name != block.name or scene == partition.scene_of(block).absolute():
        return False
    return finished_ply(partition, block).is_file()


def finished_ply(partition: Partition, block: Block) -> Path:
    """The model of a block that is trained to its end.

    Raises InputError: there is no run, one that has not ended, or one of another scene.
    """
    folder = partition.run_of(block)
    remedy = f"train it: gsopt train-blocks {partition.folder}"
    if not folder.config.is_file():
        raise InputError(f"{folder.path}: no run of {block.name} is here; {remedy}, or put its run here")
    config = TrainConfig.of_run(folder.path)
    if config.scene is None or config.scene.name != block.name:
        raise InputError(
            f"{folder.path}: a run of the scene {config.scene}, expected one of {block.name}; "
            f"put the run of {block.name} here"
        )
    done = read_json(folder.metrics).get("iterations", 0) if folder.metrics.is_file() else 0
    if done < config.iterations:
        raise InputError(
            f"{folder.path}: the run of {block.name} has not ended, its {config.iterations:,} iterations are "
            f"not done; {remedy}"
        )
    return _ply(folder, done)


def _ply(folder: RunFolder, iterations: int) -> Path:
    path = folder.ply(iterations)
    if not path.is_file():
        raise InputError(f"{path}: no such file, expected the model at the end of that run; copy all of it")
    return path
