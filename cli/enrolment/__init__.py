"""Enrols a folder of recordings: a CSV of callers, a report of what became of each, and the run between.

The CSV tells who people are, and nothing of that is repeated: the report and what is shown hold line
numbers, file names and our own sentences. The report is what a later run goes on from.
"""

from cli.enrolment.run import enrol

__all__ = ["enrol"]
