"""`backup`, `restore` and `migrate`: keeping the catalog, and bringing it up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from atlas_flows.commands.options import OrgansOption
from atlas_flows.commands.terminal import console, places


def backup(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="New folder for the backup.", file_okay=False)],
    store: Annotated[
        bool, typer.Option("--store/--no-store", help="List the case store's files as well.")
    ] = True,
    read_all: Annotated[
        bool, typer.Option("--read-all", help="Also read what the backup before this one lists.")
    ] = False,
) -> None:
    """Write the catalog, and a list of the case store's files with checksums, to a new folder.

    Others may work meanwhile: it is one moment's state of the catalog. The volumes are not copied:
    take a snapshot or copy of the store's folder AFTER this command, and the pair is complete.
    Files that the newest backup beside FOLDER lists, of the same size and time, are not read again.

    Example: atlasloop backup /backup/2026-01-31
    """
    from atlas_core.catalog import Catalog
    from atlas_core.store import CaseStore
    from atlas_core.store.backup import newest_backup, write_backup

    here = places(context)
    earlier = newest_backup(folder.parent) if store and not read_all else None
    with Catalog.open(here.catalog_url, migrate=False) as catalog:
        manifest = write_backup(
            catalog, CaseStore(here.store) if store else None, folder, earlier=earlier
        )
    rows = sum(dump.rows for dump in manifest.tables.values())
    listed = "no files" if manifest.store is None else f"{manifest.store.files} files"
    against = "" if earlier is None else f"; unchanged ones as in {earlier.name}"
    console().print(f"backup: {folder}: {rows} rows, {listed} listed{against}", soft_wrap=True)


def restore(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="Folder that `atlasloop backup` wrote.", file_okay=False)
    ],
    store: Annotated[
        bool,
        typer.Option("--store/--no-store", help="Compare the case store with the list first."),
    ] = True,
) -> None:
    """Fill an empty catalog from a backup, after checking backup and case store.

    Bring the store's folder back first. Checked before anything is written: every file of the
    backup, the schema version, and every file of the store, byte by byte. The catalog must be empty
    (SQLite and PostgreSQL may be exchanged); what was written is read back before it counts.

    Example: atlasloop restore /backup/2026-01-31
    """
    from atlas_core.catalog import Catalog
    from atlas_core.store import CaseStore
    from atlas_core.store.backup import restore_catalog, verify_backup, verify_store

    here = places(context)
    manifest = verify_backup(folder)
    files = 0
    if store and manifest.store is not None:
        files = verify_store(folder, CaseStore(here.store))
    here.embedded.make_home()
    with Catalog.open(here.catalog_url) as catalog:
        rows = restore_catalog(folder, catalog)
        here.grant_rights(catalog)
    console().print(f"restored: {rows} rows; {files} files of the store compared", soft_wrap=True)


def migrate(
    context: typer.Context,
    organs: OrgansOption = None,
    to: Annotated[
        str | None,
        typer.Option(help="Back to this schema, for the earlier version that knows it."),
    ] = None,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Rows that it has no place for may go.")
    ] = False,
) -> None:
    """Create the catalog's tables, or bring them up to this version. Harmless when they are.

    A deployment runs this once before its services start; several at a time wait for each other.
    With ATLASLOOP_REVIEW_ROLE it gives that role of PostgreSQL the rights of the review service.
    With --to it goes the other way: run it in the newer version, before you start the earlier one.

    Example: atlasloop migrate
    """
    from atlas_core.catalog import Catalog
    from atlas_core.catalog.tables import REVISION

    here = places(context)
    if to is not None:
        with Catalog.open(here.catalog_url, migrate=False) as catalog:
            lost = catalog.step_down(to, accept_loss=accept_loss)
        gone = ", ".join(f"{rows} rows of {name}" for name, rows in lost.items()) or "nothing"
        console().print(f"the catalog is at schema {to}; lost: {gone}", markup=False)
        return
    with Catalog.open(here.catalog_url) as catalog:
        here.choose_organs(catalog, organs)
        here.grant_rights(catalog)
        scheme = catalog.organ_scheme()
    console().print(f"the catalog is at schema {REVISION}; organs: {scheme}", markup=False)
