"""The table that says which patient a case is of, so that a patient stays in one split."""

from __future__ import annotations

import csv
from pathlib import Path

from atlas_core.errors import InvalidInput, NotFound


def read_patients(path: Path | None) -> dict[str, str]:
    """Case id → patient out of a table with the columns ``case`` and ``patient``.

    Raises:
        NotFound: no such file.
        InvalidInput: other columns, an empty cell, or a case twice.
    """
    if path is None:
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise NotFound("no table of patients", got=path.name) from None
    found: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        case, patient = (row.get("case") or "").strip(), (row.get("patient") or "").strip()
        if not case or not patient or case in found:
            raise InvalidInput(
                f"line {line} of the table of patients cannot be used",
                case=path.name,
                expected="columns case and patient, both filled, every case once",
            )
        found[case] = patient
    return found
