"""The vault in PostgreSQL: its role's alone."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
import sqlalchemy as sa
from atlas_core.errors import ConfigurationError
from atlas_core.pacs import Vault


@pytest.fixture
def stranger_url(postgresql_url: str) -> Iterator[str]:
    """The same database, for a role that may come in and owns nothing."""
    address = sa.make_url(postgresql_url).set(drivername="postgresql+psycopg")
    role = f"review_{uuid4().hex[:8]}"
    engine = sa.create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE ROLE {role} LOGIN PASSWORD 'a-role'"))
        yield address.set(username=role, password="a-role").render_as_string(hide_password=False)
        connection.execute(sa.text(f"DROP ROLE {role}"))
    engine.dispose()


def test_another_role_reads_no_key_and_no_name(postgresql_url: str, stranger_url: str) -> None:
    with Vault.open(postgresql_url) as vault:
        pseudonym = vault.pseudonyms.uid("1.2.3")
        vault.name({pseudonym: "1.2.3"})
    with Vault.open(postgresql_url) as vault:
        assert vault.pseudonyms.uid("1.2.3") == pseudonym
    with pytest.raises(ConfigurationError, match="may not read the vault"):
        Vault.open(stranger_url)
    engine = sa.create_engine(stranger_url)
    for table in ("vault_keys", "vault_names", "vault_images"):
        with engine.connect() as connection, pytest.raises(sa.exc.ProgrammingError, match="denied"):
            connection.execute(sa.text(f"SELECT * FROM {table}"))
    engine.dispose()
