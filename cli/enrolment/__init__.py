"""Enrols a folder of recordings: a CSV of callers, a report of what became of each, and the run between.

The CSV says who people are, and none of that is repeated: the report and the output hold line numbers, file
names and our own sentences. A later run continues from the report.
"""

from cli.enrolment.run import enrol

__all__ = ["enrol"]
