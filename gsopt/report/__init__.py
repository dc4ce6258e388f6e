"""A report of a run, or of several side by side: one HTML file that needs nothing else."""

from gsopt.report.data import RunData, read_run, told_apart
from gsopt.report.page import page
from gsopt.report.views import Row, Seen, seen, worst

__all__ = ["Row", "RunData", "Seen", "page", "read_run", "seen", "told_apart", "worst"]
