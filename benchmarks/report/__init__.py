"""The report: what the runs on disk amount to, beside what the papers report."""

from benchmarks.report.command import Report
from benchmarks.report.reading import ResultsError

__all__ = ["Report", "ResultsError"]
