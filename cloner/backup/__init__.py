"""Keeps a registry in a file, puts it back and brings it up to date, as a command for operators.

`archive` is the form of the file, `command` what an operator types. What is read from a database and
written to one is the registry's own matter.
"""
