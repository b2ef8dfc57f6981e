"""What the process from which tests, cloners, gateways and commands are forked has ready for them."""

import gc
import importlib
import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as a cloner does before it imports gRPC

import litestar

import cli.enrolment  # noqa: F401 - imported by `precall enrol`
import cloner.backup.command  # `precall-registry`
import cloner.process  # `python -m cloner`
import cloner.registry.postgres  # noqa: F401 - imported by a cloner whose database is one
import emulator  # noqa: F401 - `python -m emulator`
import gateway.process  # noqa: F401 - `python -m gateway`
import tests.kit.forked  # noqa: F401 - what they run
from cloner.provider.transport import authorities

# What they import when they come to need it, and what most of the tests do.
LATER = (
    "alembic.command",
    "anyio._backends._asyncio",
    "encodings.idna",
    "hypothesis",
    "kubernetes_validate",
    "litestar.plugins.pydantic",
    "prometheus_client",
    "pytest_asyncio",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "trustme",
    "valkey.asyncio",
    "xdist.remote",
)
for name in LATER:
    importlib.import_module(name)
# Litestar imports some of itself only while it makes an application.
litestar.Litestar(logging_config=None)
authorities()
# To look through all this as garbage would make each of them a copy of it.
gc.collect()
gc.freeze()
