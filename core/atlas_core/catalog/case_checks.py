"""What checks of cases found; see `records.CaseWarning`."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from atlas_core.catalog import tables as t
from atlas_core.catalog.catalog import Catalog
from atlas_core.catalog.database import chunks
from atlas_core.catalog.model_registry import now
from atlas_core.records import CaseWarning, CheckedPart

_c = t.case_checks.c


def record_check(
    catalog: Catalog,
    case_id: str,
    part: CheckedPart,
    inputs_sha256: str,
    warnings: Sequence[CaseWarning],
) -> None:
    """Record what a check of one part of a case found, in place of what an earlier one did.

    Args:
        inputs_sha256: of what was looked at.
    """
    row = {
        "case_id": case_id,
        "part": part.value,
        "inputs_sha256": inputs_sha256,
        "found": len(warnings),
        "warnings": [warning.model_dump(mode="json") for warning in warnings],
        "checked_at": now(),
    }
    with catalog.transaction(write=True) as connection:
        connection.execute(sa.delete(t.case_checks).where(_of(case_id, part)))
        connection.execute(sa.insert(t.case_checks).values(row))


def checked_inputs(catalog: Catalog, case_id: str, part: CheckedPart) -> str | None:
    """What the last check of this part looked at; None: there was none."""
    query = sa.select(_c.inputs_sha256).where(_of(case_id, part))
    with catalog.transaction(write=False) as connection:
        found: str | None = connection.scalar(query)
    return found


def warnings_by_case(
    catalog: Catalog, case_ids: Sequence[str]
) -> dict[str, tuple[CaseWarning, ...]]:
    """The warnings of these cases, any number of them; cases without any are left out."""
    found: dict[str, tuple[CaseWarning, ...]] = {}
    with catalog.transaction(write=False) as connection:
        for chunk in chunks(list(case_ids)):
            query = (
                sa.select(_c.case_id, _c.warnings)
                .where(_c.case_id.in_(chunk), _c.found > 0)
                .order_by(_c.case_id, _c.part.desc())  # the scan first
            )
            for row in connection.execute(query):
                warnings = tuple(CaseWarning.model_validate(one) for one in row.warnings)
                found[row.case_id] = found.get(row.case_id, ()) + warnings
    return found


def _of(case_id: str, part: CheckedPart) -> sa.ColumnElement[bool]:
    return (_c.case_id == case_id) & (_c.part == part.value)
