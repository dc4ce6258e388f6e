"""Trained blocks joined by ownership: of each block's model, what lies in its cell."""

from dataclasses import replace

from gsopt.blocks.partition import Block, Partition
from gsopt.blocks.runs import finished_ply
from gsopt.editing import merge
from gsopt.formats import Splat, read


def join(partition: Partition) -> tuple[Splat, list[tuple[Block, int, int]]]:
    """The model of the whole; and of each block how many Gaussians its model has, and how many it owns.

    Raises InputError where a block is missing or is not trained to its end.
    """
    paths = [finished_ply(partition, block) for block in partition.blocks]  # all, before any is read
    parts, counts = [], []
    for block, path in zip(partition.blocks, paths, strict=True):
        splat = read(path)
        rows = partition.owned(block, splat.tensors["xyz"].numpy())
        counts.append((block, splat.count, int(rows.sum())))
        tensors = {name: value[rows] for name, value in splat.tensors.items()}
        parts.append(replace(splat, tensors=tensors))
    return merge(parts), counts
