"""Alembic's entry: runs the migrations on the connection and transaction that the catalog opened.

A catalog migrates itself when it is opened (`Catalog.open`); the `alembic` command is for writing
revisions only.
"""

from __future__ import annotations

from alembic import context
from atlas_core.catalog.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
