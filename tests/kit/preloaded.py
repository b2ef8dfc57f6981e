"""What the process from which cloners, gateways and commands are forked has ready for them, beside what they import."""

import gc
import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as a cloner does before it imports gRPC

import alembic.command  # noqa: F401 - imported by a cloner that finds an empty database
import litestar.plugins.pydantic  # noqa: F401 - imported by Litestar, as pydantic is here
import sqlalchemy  # noqa: F401 - as above

import cli.enrolment  # noqa: F401 - imported by `precall enrol`
import cloner.backup.command  # `precall-registry`
import cloner.process  # `python -m cloner`
import cloner.registry.postgres  # noqa: F401 - imported by a cloner whose database is one
import emulator  # noqa: F401 - `python -m emulator`
import gateway.process  # noqa: F401 - `python -m gateway`
import tests.kit.forked  # noqa: F401 - what they run
from cloner.provider.transport import authorities

authorities()
# To look through all this as garbage would make each of them a copy of it.
gc.collect()
gc.freeze()
