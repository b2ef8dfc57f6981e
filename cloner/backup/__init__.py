"""Keeps a registry in a file, puts it back and brings it up to date, as a command for operators.

`archive` is the format of the file and `command` the command line. Databases are read and written by
`cloner.registry`.
"""
