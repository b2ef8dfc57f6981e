"""Runs migrations on the connection that `cloner.registry.opening` has opened and locked."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
