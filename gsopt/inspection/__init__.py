"""What is in a checkpoint, an optimizer's file or a splat, by name, and what differs in two."""

from gsopt.inspection.compare import Comparison, EntryDifference, compare
from gsopt.inspection.snapshot import Group, Parameter, Snapshot, open_snapshot

__all__ = [
    "Comparison",
    "EntryDifference",
    "Group",
    "Parameter",
    "Snapshot",
    "compare",
    "open_snapshot",
]
