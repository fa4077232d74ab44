"""The catalog: the records of every case, in SQLite on one machine or PostgreSQL for a site.

All values that go in and come out are the frozen records of `atlas_core.records`. Each public call
is one transaction. Files are written before their rows, so that no row names a missing file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from atlas_core.catalog import tables as t
from atlas_core.catalog.database import ROWS_PER_STATEMENT, Database, chunks, insert_new
from atlas_core.catalog.ensembles import key_in_use
from atlas_core.catalog.organ_schemes import remembered_scheme
from atlas_core.errors import Conflict, NotFound
from atlas_core.model_spec import ModelRef
from atlas_core.organs import OrganScheme
from atlas_core.ranking import CaseSizes, rank
from atlas_core.records import (
    Case,
    Dataset,
    Label,
    LabelSource,
    Model,
    OrganScore,
    RankBy,
    RankedCase,
    Reading,
    Score,
)

_SIZES: Final = tuple(t.organ_scores.c[name] for name in OrganScore.model_fields)


class Catalog(Database):
    """Datasets, cases, labels, models and scores. Safe to share between threads.

    Make one with `Catalog.open`; it is a context manager. Modules that keep further tables in this
    database query them in a `transaction`.
    """

    def organ_scheme(self) -> OrganScheme:
        """The organs of this atlas; see `choose_organs` and `extend_organs`."""
        with self.transaction(write=False) as connection:
            return remembered_scheme(connection)

    # Datasets and cases

    def add_dataset(self, dataset: Dataset) -> Dataset:
        """Register `dataset`, or merge it into the one registered under that name.

        Its organs are added to those known, and texts that were empty are filled in.

        Returns:
            The dataset as registered now.
        """
        with self.transaction(write=True) as connection:
            known = _dataset(connection, dataset.name)
            merged = dataset if known is None else _merged(known, dataset)
            if known is None:
                insert_new(connection, t.datasets, [merged.model_dump(mode="json")])
            elif merged != known:
                connection.execute(
                    sa.update(t.datasets)
                    .where(t.datasets.c.name == merged.name)
                    .values(merged.model_dump(mode="json", exclude={"name"}))
                )
            return merged

    def dataset(self, name: str) -> Dataset:
        """The dataset called `name`.

        Raises:
            NotFound: there is none.
        """
        with self.transaction(write=False) as connection:
            found = _dataset(connection, name)
        if found is None:
            raise NotFound(f"no dataset {name!r} in the catalog")
        return found

    def datasets(self) -> list[Dataset]:
        """All datasets, by name."""
        with self.transaction(write=False) as connection:
            rows = connection.execute(sa.select(t.datasets).order_by(t.datasets.c.name)).mappings()
            return [Dataset.model_validate(dict(row)) for row in rows]

    def add_case(self, case: Case, labels: Iterable[Label] = ()) -> bool:
        """Register a case together with its labels, all or nothing.

        Returns:
            False if the same case was registered before (new labels are still added).

        Raises:
            NotFound: its dataset is not registered.
            Conflict: its content is registered under another id, or its id with other content.
        """
        with self.transaction(write=True) as connection:
            if _dataset(connection, case.dataset) is None:
                raise NotFound(f"no dataset {case.dataset!r} in the catalog", case=case.id)
            added = insert_new(connection, t.cases, [case.model_dump(mode="json")])
            if not added:
                _require_same_case(connection, case)
            self._insert_labels(connection, labels)
            return bool(added)

    def case(self, case_id: str) -> Case:
        """The case called `case_id`.

        Raises:
            NotFound: there is none.
        """
        found = self._cases(t.cases.c.id == case_id)
        if not found:
            raise NotFound("no such case in the catalog", case=case_id)
        return found[0]

    def cases(self, dataset: str | None = None) -> list[Case]:
        """All cases, or those of one dataset, by id."""
        return self._cases(sa.true() if dataset is None else t.cases.c.dataset == dataset)

    def find_case_by_content(self, content_sha256: str) -> Case | None:
        """The case of this content, whichever dataset it came with; None if there is none."""
        found = self._cases(t.cases.c.content_sha256 == content_sha256)
        return found[0] if found else None

    def copies_of(self, case: Case) -> list[Case]:
        """Other cases that show the same scan, by id: see `Case.fingerprint`."""
        if case.fingerprint is None:
            return []
        same = t.cases.c.fingerprint == case.fingerprint
        return self._cases(same & (t.cases.c.id != case.id))

    def delete_case(self, case_id: str) -> None:
        """Delete a case with its labels and scores. Its files are left to the case store.

        Raises:
            NotFound: there is none.
        """
        with self.transaction(write=True) as connection:
            if not connection.execute(sa.delete(t.cases).where(t.cases.c.id == case_id)).rowcount:
                raise NotFound("no such case in the catalog", case=case_id)

    # Labels

    def add_labels(self, labels: Iterable[Label]) -> int:
        """Add labels, all or none. One already on record (same case, organ, source and file) stays
        as it is: labels are immutable.

        Returns:
            How many were new.

        Raises:
            NotFound: one belongs to an unknown case; none was added.
        """
        with self.transaction(write=True) as connection:
            return self._insert_labels(connection, labels)

    def labels(self, case_id: str, source: LabelSource | None = None) -> list[Label]:
        """Labels of a case, oldest first."""
        wanted = t.labels.c.case_id == case_id
        if source is not None:
            wanted &= t.labels.c.source == source.value
        query = sa.select(t.labels).where(wanted).order_by(t.labels.c.id)
        with self.transaction(write=False) as connection:
            return [_label(row) for row in connection.execute(query).mappings()]

    def original_organs(self, dataset: str | None = None) -> dict[str, frozenset[str]]:
        """Organs that have an original label, by case id; cases without any are left out."""
        with self.transaction(write=False) as connection:
            return _original_organs(connection, dataset)

    # Models

    def register_model(self, model: Model) -> bool:
        """Register one version of a model. Registering the same one again changes nothing.

        Returns:
            False if it was there already.
        """
        row = model.model_dump(mode="json") | {
            "name": model.spec.name,
            "version": model.spec.version,
            "sha256": model.spec.sha256,
            "created_at": model.created_at,
        }
        with self.transaction(write=True) as connection:
            return bool(insert_new(connection, t.models, [row]))

    def models(self, name: str | None = None) -> list[Model]:
        """Registered models by name, version and time of registration."""
        wanted = sa.true() if name is None else t.models.c.name == name
        columns = t.models.c
        query = (
            sa.select(
                columns.spec,
                columns.parent,
                columns.metrics,
                columns.provenance,
                columns.created_at,
            )
            .where(wanted)
            .order_by(columns.name, columns.version, columns.created_at)
        )
        with self.transaction(write=False) as connection:
            return [Model.model_validate(dict(row)) for row in connection.execute(query).mappings()]

    # Scores

    def record_score(self, score: Score, labels: Iterable[Label] = ()) -> bool:
        """Record a score together with the pseudo labels of that prediction, all or nothing.

        There is one score of a case, reading and ensemble: it says which of the results in the case
        store is in force. That of another result takes its place at once; labels stay on record.

        Returns:
            False if the score of this very result was there already; nothing is changed then.

        Raises:
            NotFound: the case is not in the catalog.
        """
        with self.transaction(write=True) as connection:
            _require_cases(connection, {score.case_id})
            self._insert_ensemble(connection, score)
            s, kept = t.scores.c, {"number", "seconds", "created_at"}
            key = {
                "case_id": score.case_id,
                "reading": score.reading.value,
                "ensemble": score.ensemble,
            }
            others = sa.and_(*(s[name] == value for name, value in key.items()))
            connection.execute(sa.delete(t.scores).where(others, s.number != score.number))
            if not insert_new(connection, t.scores, [key | score.model_dump(include=kept)]):
                return False
            if score.organs:
                connection.execute(
                    sa.insert(t.organ_scores), [key | size.model_dump() for size in score.organs]
                )
            self._insert_labels(connection, labels)
            return True

    def score(self, case_id: str, reading: Reading, ensemble: str) -> Score | None:
        """The score of a case by one ensemble, or None."""
        s = t.scores.c
        query = sa.select(s.number, s.seconds, s.created_at).where(
            s.case_id == case_id, s.reading == reading.value, s.ensemble == ensemble
        )
        with self.transaction(write=False) as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            o = t.organ_scores.c
            sizes = connection.execute(
                sa.select(*_SIZES)
                .where(o.case_id == case_id, o.reading == reading.value, o.ensemble == ensemble)
                .order_by(o.organ)
            )
            return Score(
                case_id=case_id,
                reading=reading,
                ensemble=ensemble,
                models=_ensemble_models(connection, ensemble),
                organs=tuple(_organ_score(size) for size in sizes),
                number=row.number,
                seconds=row.seconds,
                created_at=row.created_at,
            )

    def delete_score(self, case_id: str, reading: Reading, ensemble: str) -> bool:
        """Delete a score (its pseudo labels stay on record); False if there was none."""
        s = t.scores.c
        query = sa.delete(t.scores).where(
            s.case_id == case_id, s.reading == reading.value, s.ensemble == ensemble
        )
        with self.transaction(write=True) as connection:
            return bool(connection.execute(query).rowcount)

    def scored_cases(self, reading: Reading, ensemble: str) -> dict[str, int]:
        """Cases that this ensemble has scored under this reading, with the number of the result in
        force."""
        s = t.scores.c
        query = sa.select(s.case_id, s.number).where(
            s.reading == reading.value, s.ensemble == ensemble
        )
        with self.transaction(write=False) as connection:
            return {row.case_id: row.number for row in connection.execute(query)}

    def latest_ensemble(self, reading: Reading, dataset: str | None = None) -> str | None:
        """Whose scores count unless another is named: the ensemble in use, or, where it has scored
        nothing yet, the one of the newest score under this reading; None where nothing is scored.
        """
        with self.transaction(write=False) as connection:
            return _latest_ensemble(connection, reading, dataset)

    def scored_otherwise(self, reading: Reading, ensemble: str, dataset: str | None = None) -> int:
        """How many cases other ensembles have scored, and this one has not: their sizes do not
        compare with those of its list."""
        s = t.scores.c
        of_reading = s.reading == reading.value
        by_it = sa.select(s.case_id).where(of_reading, s.ensemble == ensemble)
        query = sa.select(sa.func.count(s.case_id.distinct())).where(
            of_reading, s.case_id.not_in(by_it)
        )
        if dataset is not None:
            of_dataset = sa.select(t.cases.c.id).where(t.cases.c.dataset == dataset)
            query = query.where(s.case_id.in_(of_dataset))
        with self.transaction(write=False) as connection:
            return int(connection.scalar(query) or 0)

    def ensembles(self, reading: Reading) -> dict[str, datetime]:
        """Every ensemble that has scored a case under this reading, with the time of its first
        score; oldest first. In the loop that is one ensemble per iteration."""
        s = t.scores.c
        first = sa.func.min(s.created_at, type_=t.UtcDateTime())
        query = (
            sa.select(s.ensemble, first)
            .where(s.reading == reading.value)
            .group_by(s.ensemble)
            .order_by(first, s.ensemble)
        )
        with self.transaction(write=False) as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def ranking(
        self,
        reading: Reading,
        ensemble: str | None = None,
        dataset: str | None = None,
        by: RankBy = RankBy.DISAGREEMENT,
    ) -> list[RankedCase]:
        """The priority list of the cases that one ensemble has scored; see `ranking.rank`.

        Args:
            reading: of the attention maps.
            ensemble: that scored the cases; None: see `latest_ensemble`.
            dataset: only its cases; None: all.
            by: what the list is sorted by.

        Raises:
            Conflict: some of the scores lack what the list is sorted by; see `ranking.rank`.
        """
        with self.transaction(write=False) as connection:
            if ensemble is None:
                ensemble = _latest_ensemble(connection, reading, dataset)
            if ensemble is None:
                return []
            original = _original_organs(connection, dataset)
            sizes = _sizes(connection, reading, ensemble, dataset)
            return rank(
                (
                    CaseSizes(case_id, name, organs, original.get(case_id, frozenset()))
                    for case_id, name, organs in sizes
                ),
                by,
            )

    # Internals

    def _insert_labels(self, connection: Connection, labels: Iterable[Label]) -> int:
        rows = [label.model_dump(mode="json") for label in labels]
        _require_cases(connection, {row["case_id"] for row in rows})
        return len(insert_new(connection, t.labels, rows))

    def _insert_ensemble(self, connection: Connection, score: Score) -> None:
        insert_new(connection, t.ensembles, [{"key": score.ensemble}])
        refs = [ref.model_dump() | {"ensemble": score.ensemble} for ref in score.models]
        insert_new(connection, t.ensemble_models, refs)

    def _cases(self, wanted: sa.ColumnElement[bool]) -> list[Case]:
        query = sa.select(t.cases).where(wanted).order_by(t.cases.c.id)
        with self.transaction(write=False) as connection:
            return [Case.model_validate(dict(row)) for row in connection.execute(query).mappings()]


def _dataset(connection: Connection, name: str) -> Dataset | None:
    row = (
        connection.execute(sa.select(t.datasets).where(t.datasets.c.name == name))
        .mappings()
        .one_or_none()
    )
    return None if row is None else Dataset.model_validate(dict(row))


def _merged(known: Dataset, new: Dataset) -> Dataset:
    return Dataset(
        name=known.name,
        title=known.title or new.title,
        licence=known.licence or new.licence,
        url=known.url or new.url,
        organs=(*known.organs, *(organ for organ in new.organs if organ not in known.organs)),
        preset=known.preset or new.preset,
    )


def _require_same_case(connection: Connection, case: Case) -> None:
    query = sa.select(t.cases.c.id, t.cases.c.content_sha256).where(
        (t.cases.c.id == case.id) | (t.cases.c.content_sha256 == case.content_sha256)
    )
    for row in connection.execute(query):
        if row.id != case.id:
            raise Conflict("this CT is in the catalog already", case=case.id, got=row.id)
        if row.content_sha256 != case.content_sha256:
            raise Conflict(
                "this id belongs to another CT",
                case=case.id,
                expected=row.content_sha256,
                got=case.content_sha256,
            )


def _require_cases(connection: Connection, case_ids: set[str]) -> None:
    known: set[str] = set()
    for chunk in chunks(sorted(case_ids), ROWS_PER_STATEMENT):
        known.update(connection.scalars(sa.select(t.cases.c.id).where(t.cases.c.id.in_(chunk))))
    missing = sorted(case_ids - known)
    if missing:
        raise NotFound("no such case in the catalog", case=missing[0])


def _label(row: sa.RowMapping) -> Label:
    return Label.model_validate({name: row[name] for name in Label.model_fields})


def _original_organs(connection: Connection, dataset: str | None) -> dict[str, frozenset[str]]:
    query = (
        sa.select(t.labels.c.case_id, t.labels.c.organ)
        .distinct()
        .where(t.labels.c.source == LabelSource.ORIGINAL.value)
    )
    if dataset is not None:
        query = query.join(t.cases, t.cases.c.id == t.labels.c.case_id).where(
            t.cases.c.dataset == dataset
        )
    organs: dict[str, set[str]] = {}
    for case_id, organ in connection.execute(query):
        organs.setdefault(case_id, set()).add(organ)
    return {case_id: frozenset(names) for case_id, names in organs.items()}


def _ensemble_models(connection: Connection, ensemble: str) -> tuple[ModelRef, ...]:
    m = t.ensemble_models.c
    query = (
        sa.select(m.name, m.version, m.sha256)
        .where(m.ensemble == ensemble)
        .order_by(m.name, m.version, m.sha256)
    )
    return tuple(
        ModelRef(name=row.name, version=row.version, sha256=row.sha256)
        for row in connection.execute(query)
    )


def _latest_ensemble(connection: Connection, reading: Reading, dataset: str | None) -> str | None:
    s = t.scores.c
    query = sa.select(s.ensemble).where(s.reading == reading.value).limit(1)
    if dataset is not None:
        query = query.join(t.cases, t.cases.c.id == s.case_id).where(t.cases.c.dataset == dataset)
    return connection.scalar(
        query.where(s.ensemble == key_in_use(connection))
    ) or connection.scalar(query.order_by(s.created_at.desc(), s.ensemble))


def _organ_score(row: Sequence[Any]) -> OrganScore:
    """A score out of the columns `_SIZES`."""
    # Not validated again: it was when it went in, and a ranking reads 76,000 of them.
    return OrganScore.model_construct(**dict(zip(OrganScore.model_fields, row, strict=True)))


def _sizes(
    connection: Connection, reading: Reading, ensemble: str, dataset: str | None
) -> Iterator[tuple[str, str, tuple[OrganScore, ...]]]:
    """Case id, dataset and organ sizes of every case that the ensemble has scored.

    One query, whatever the number of cases. The outer join keeps a case without organs in the list.
    """
    s, o, c = t.scores.c, t.organ_scores.c, t.cases.c
    same_score = sa.and_(o.case_id == s.case_id, o.reading == s.reading, o.ensemble == s.ensemble)
    query = (
        sa.select(s.case_id, c.dataset, *_SIZES)
        .select_from(t.scores)
        .join(t.cases, c.id == s.case_id)
        .outerjoin(t.organ_scores, same_score)
        .where(s.reading == reading.value, s.ensemble == ensemble)
        .order_by(s.case_id)
    )
    if dataset is not None:
        query = query.where(c.dataset == dataset)
    rows = connection.execute(query)
    for (case_id, name), group in groupby(rows, key=itemgetter(0, 1)):
        yield case_id, name, tuple(_organ_score(row[2:]) for row in group if row[2] is not None)
