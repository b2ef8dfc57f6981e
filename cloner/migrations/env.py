"""Runs migrations on the connection that `cloner.registry.database` has opened and locked."""

from alembic import context

from cloner.registry.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
