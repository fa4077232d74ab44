"""The catalog: what is known of every case, in SQLite on one machine or PostgreSQL for a site.

All values that go in and come out are the frozen records of `atlas_core.records`. Each public call
is one transaction; files are written before their rows, so that a row never points at nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DatabaseError, IntegrityError, InterfaceError, OperationalError

from atlas_core.catalog import tables as t
from atlas_core.catalog.database import (
    _MIGRATION_LOCK,
    _alembic,
    _engine,
    _require_known,
    _revision,
    _upgrade,
    _without_password,
)
from atlas_core.errors import ConfigurationError, Conflict, InvalidInput, NotFound, Unavailable
from atlas_core.model_spec import ModelRef
from atlas_core.ranking import CaseSizes, rank
from atlas_core.records import (
    Case,
    Dataset,
    Iteration,
    IterationState,
    Label,
    LabelSource,
    Model,
    OrganScore,
    RankBy,
    RankedCase,
    Reading,
    Score,
)

ROWS_PER_STATEMENT: Final = 500
"""Both databases bound the number of parameters of a statement (32,766 on SQLite)."""


_SIZES: Final = (
    t.organ_scores.c.organ,
    t.organ_scores.c.attention_voxels,
    t.organ_scores.c.attention_ml,
    t.organ_scores.c.pseudo_label_ml,
)

T = TypeVar("T")


class Catalog:
    """Datasets, cases, labels, models, scores and iterations. Safe to share between threads.

    Make one with `Catalog.open`; it is a context manager.
    """

    def __init__(self, engine: Engine) -> None:
        """Not for callers: use `open`, which checks the address and the schema."""
        self._engine = engine
        # A reader that asks twice sees one state of the catalog (on SQLite it does anyway).
        is_postgresql = engine.dialect.name == "postgresql"
        snapshot = {"isolation_level": "REPEATABLE READ"} if is_postgresql else {}
        self._reading = engine.execution_options(**snapshot)
        self._writing = engine.execution_options(atlas_write=True)
        self._place = engine.url.render_as_string(hide_password=True)

    @classmethod
    def open(cls, url: str, *, migrate: bool = True) -> Catalog:
        """Connect, and bring the schema up to date.

        Several processes may open (and so migrate) the same catalog at once: one does it, the
        others wait for it.

        Args:
            url: ``sqlite:///relative.sqlite``, ``sqlite:////absolute.sqlite`` or
                ``postgresql://user:password@host:port/database?sslmode=verify-full``.
            migrate: create or upgrade the schema if needed; False where a deployment does that in a
                step of its own.

        Raises:
            ConfigurationError: another kind of address, a file that is no catalog, a schema that is
                newer than this version of Atlas Loop, or (``migrate=False``) older.
            Unavailable: the database does not answer. The message never holds the password.
        """
        catalog = cls(_engine(url))
        try:
            catalog._bring_up_to_date(migrate)
        except BaseException:
            catalog.close()
            raise
        return catalog

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Datasets and cases

    def add_dataset(self, dataset: Dataset) -> Dataset:
        """Register `dataset`, or return the one of that name that is there, with what is new in it.

        Organs that the new one covers are added to those known; empty texts are filled in.
        """
        with self._write() as connection:
            known = _dataset(connection, dataset.name)
            merged = dataset if known is None else _merged(known, dataset)
            if known is None:
                self._insert_new(connection, t.datasets, [merged.model_dump(mode="json")])
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
        with self._read() as connection:
            found = _dataset(connection, name)
        if found is None:
            raise NotFound(f"no dataset {name!r} in the catalog")
        return found

    def datasets(self) -> list[Dataset]:
        """All datasets, by name."""
        with self._read() as connection:
            rows = connection.execute(sa.select(t.datasets).order_by(t.datasets.c.name)).mappings()
            return [Dataset.model_validate(dict(row)) for row in rows]

    def add_case(self, case: Case, labels: Iterable[Label] = ()) -> bool:
        """Register a case together with its labels; both or nothing.

        Returns:
            False if this very case was there already (its new labels are added all the same).

        Raises:
            NotFound: its dataset is not registered.
            Conflict: its content is there under another id, or its id with another content.
        """
        with self._write() as connection:
            if _dataset(connection, case.dataset) is None:
                raise NotFound(f"no dataset {case.dataset!r} in the catalog", case=case.id)
            added = self._insert_new(connection, t.cases, [case.model_dump(mode="json")])
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

    def delete_case(self, case_id: str) -> None:
        """Forget a case with its labels and scores. Files are the case store's business.

        Raises:
            NotFound: there is none.
        """
        with self._write() as connection:
            if not connection.execute(sa.delete(t.cases).where(t.cases.c.id == case_id)).rowcount:
                raise NotFound("no such case in the catalog", case=case_id)

    # Labels

    def add_labels(self, labels: Iterable[Label]) -> int:
        """Add labels, all or none. One that is there already (same case, organ, source and file) is
        left as it is: labels are immutable.

        Returns:
            How many were new.

        Raises:
            NotFound: one is of an unknown case; none was added.
        """
        with self._write() as connection:
            return self._insert_labels(connection, labels)

    def labels(self, case_id: str, source: LabelSource | None = None) -> list[Label]:
        """Labels of a case, oldest first."""
        wanted = t.labels.c.case_id == case_id
        if source is not None:
            wanted &= t.labels.c.source == source.value
        query = sa.select(t.labels).where(wanted).order_by(t.labels.c.id)
        with self._read() as connection:
            return [_label(row) for row in connection.execute(query).mappings()]

    def original_organs(self, dataset: str | None = None) -> dict[str, frozenset[str]]:
        """Organs that have an original label, by case id; cases without any are left out."""
        with self._read() as connection:
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
        with self._write() as connection:
            return bool(self._insert_new(connection, t.models, [row]))

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
        with self._read() as connection:
            return [Model.model_validate(dict(row)) for row in connection.execute(query).mappings()]

    # Scores

    def record_score(self, score: Score, labels: Iterable[Label] = ()) -> bool:
        """Remember a score together with the pseudo labels of that prediction; all or nothing.

        The first score of a case, reading and ensemble stays, as the first prediction stays in the
        case store: numbers and files always belong together. To score anew, delete both first.

        Returns:
            False if there was one already; nothing was changed then.

        Raises:
            NotFound: the case is not in the catalog.
        """
        with self._write() as connection:
            _require_cases(connection, {score.case_id})
            self._insert_ensemble(connection, score)
            row = score.model_dump(include={"case_id", "ensemble", "seconds", "created_at"})
            added = self._insert_new(connection, t.scores, [row | {"reading": score.reading.value}])
            if not added:
                return False
            key = {
                "case_id": score.case_id,
                "reading": score.reading.value,
                "ensemble": score.ensemble,
            }
            if score.organs:
                connection.execute(
                    sa.insert(t.organ_scores), [key | size.model_dump() for size in score.organs]
                )
            self._insert_labels(connection, labels)
            return True

    def score(self, case_id: str, reading: Reading, ensemble: str) -> Score | None:
        """The score of a case by one ensemble, or None."""
        s = t.scores.c
        query = sa.select(s.seconds, s.created_at).where(
            s.case_id == case_id, s.reading == reading.value, s.ensemble == ensemble
        )
        with self._read() as connection:
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
                seconds=row.seconds,
                created_at=row.created_at,
            )

    def delete_score(self, case_id: str, reading: Reading, ensemble: str) -> bool:
        """Forget a score (its pseudo labels stay on record); False if there was none."""
        s = t.scores.c
        query = sa.delete(t.scores).where(
            s.case_id == case_id, s.reading == reading.value, s.ensemble == ensemble
        )
        with self._write() as connection:
            return bool(connection.execute(query).rowcount)

    def scored_cases(self, reading: Reading, ensemble: str) -> set[str]:
        """Ids of the cases that this ensemble has scored under this reading."""
        s = t.scores.c
        query = sa.select(s.case_id).where(s.reading == reading.value, s.ensemble == ensemble)
        with self._read() as connection:
            return set(connection.scalars(query))

    def latest_ensemble(self, reading: Reading, dataset: str | None = None) -> str | None:
        """The ensemble of the newest score under this reading; None where nothing is scored."""
        with self._read() as connection:
            return _latest_ensemble(connection, reading, dataset)

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
        with self._read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def ranking(
        self,
        reading: Reading,
        ensemble: str | None = None,
        dataset: str | None = None,
        by: RankBy = RankBy.SIZE,
    ) -> list[RankedCase]:
        """The priority list of the cases that one ensemble has scored; see `ranking.rank`.

        Args:
            reading: which attention maps.
            ensemble: whose; None: that of the newest score.
            dataset: only its cases; None: all.
            by: what the list is sorted by.
        """
        with self._read() as connection:
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

    # Iterations

    def start_iteration(self, parameters: Mapping[str, object]) -> Iteration:
        """Open the next turn of the loop: t is one more than the last.

        Raises:
            Conflict: the last one is still open.
        """
        with self._write() as connection:
            last = (
                connection.execute(
                    sa.select(t.iterations).order_by(t.iterations.c.t.desc()).limit(1)
                )
                .mappings()
                .one_or_none()
            )
            if last is not None and last["state"] == IterationState.OPEN.value:
                raise Conflict(
                    f"iteration {last['t']} is still open", remedy="finish it before the next one"
                )
            opened = Iteration(
                t=0 if last is None else last["t"] + 1,
                parameters=dict(parameters),
                started_at=datetime.now(UTC),
            )
            row = opened.model_dump(mode="json") | {"started_at": opened.started_at}
            if not self._insert_new(connection, t.iterations, [row]):
                raise Conflict(f"iteration {opened.t} was opened by somebody else just now")
            return opened

    def finish_iteration(self, number: int, state: IterationState) -> Iteration:
        """Close an open turn of the loop as done or failed.

        Raises:
            NotFound: there is no such iteration.
            Conflict: it is closed already.
            InvalidInput: `state` is "open".
        """
        if state is IterationState.OPEN:
            raise InvalidInput("an iteration ends as done or failed", got=state.value)
        i = t.iterations.c
        with self._write() as connection:
            closed = connection.execute(
                sa.update(t.iterations)
                .where(i.t == number, i.state == IterationState.OPEN.value)
                .values(state=state.value, finished_at=datetime.now(UTC))
            ).rowcount
            row = (
                connection.execute(sa.select(t.iterations).where(i.t == number))
                .mappings()
                .one_or_none()
            )
        if row is None:
            raise NotFound(f"no iteration {number} in the catalog")
        if not closed:
            raise Conflict(f"iteration {number} is closed already", got=row["state"])
        return Iteration.model_validate(dict(row))

    def iterations(self) -> list[Iteration]:
        """All turns of the loop, first to last."""
        with self._read() as connection:
            rows = connection.execute(sa.select(t.iterations).order_by(t.iterations.c.t))
            return [Iteration.model_validate(dict(row)) for row in rows.mappings()]

    # For the other modules of the core that keep tables in this database

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[Connection]:
        """One transaction: committed when the block ends, rolled back when it fails.

        Args:
            write: False: a reader's snapshot. True: on SQLite the write lock is taken at once.

        Raises:
            Unavailable: the database does not answer.
        """
        with self._write() if write else self._read() as connection:
            yield connection

    # How it is done

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._translated(), self._reading.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._translated(), self._writing.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """A database that is away or busy is `Unavailable`; the message holds no password."""
        try:
            yield
        except IntegrityError:
            raise  # a rule of the schema: a fault of ours, not of the database's whereabouts
        except (OperationalError, InterfaceError) as error:
            raise Unavailable(
                "the catalog's database does not answer",
                got=_without_password(error, self._engine),
                remedy=f"check {self._place}",
            ) from None
        except DatabaseError as error:
            if "not a database" in str(error.orig):
                raise ConfigurationError(
                    "this file is not a catalog",
                    expected="an SQLite database",
                    remedy=f"check {self._place}",
                ) from None
            raise

    @contextmanager
    def _migrating(self) -> Iterator[Connection]:
        """A transaction that only one process at a time can be in."""
        with _alembic, self._write() as connection:
            if self._engine.dialect.name == "postgresql":
                lock = sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)
                connection.execute(sa.select(lock))
            yield connection  # SQLite: BEGIN IMMEDIATE is that lock

    def _bring_up_to_date(self, migrate: bool) -> None:
        with self._read() as connection:
            if _revision(connection) == t.REVISION:
                return
        if not migrate:
            with self._read() as connection:
                _require_known(connection, self._place)
            raise ConfigurationError(
                "the catalog's schema is older than this version of Atlas Loop",
                expected=t.REVISION,
                remedy="open it once with migration",
            )
        with self._migrating() as connection:
            if _revision(connection) != t.REVISION:  # not done by another process meanwhile
                _require_known(connection, self._place)
                _upgrade(connection)

    def _insert_new(
        self, connection: Connection, table: sa.Table, rows: list[dict[str, Any]]
    ) -> int:
        """Insert the rows that are not there yet; how many those were."""
        new = 0
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        for chunk in _batched(_native(table, rows)):
            query = dialect.insert(table).values(chunk).on_conflict_do_nothing()
            # Rows are counted by what comes back: drivers differ in what they call the row count.
            new += len(connection.execute(query.returning(*table.primary_key)).all())
        return new

    def _insert_labels(self, connection: Connection, labels: Iterable[Label]) -> int:
        rows = [label.model_dump(mode="json") for label in labels]
        _require_cases(connection, {row["case_id"] for row in rows})
        return self._insert_new(connection, t.labels, rows)

    def _insert_ensemble(self, connection: Connection, score: Score) -> None:
        self._insert_new(connection, t.ensembles, [{"key": score.ensemble}])
        refs = [ref.model_dump() | {"ensemble": score.ensemble} for ref in score.models]
        self._insert_new(connection, t.ensemble_models, refs)

    def _cases(self, wanted: sa.ColumnElement[bool]) -> list[Case]:
        query = sa.select(t.cases).where(wanted).order_by(t.cases.c.id)
        with self._read() as connection:
            return [Case.model_validate(dict(row)) for row in connection.execute(query).mappings()]


def _batched(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """`rows` in pieces that fit one statement."""
    for start in range(0, len(rows), ROWS_PER_STATEMENT):
        yield rows[start : start + ROWS_PER_STATEMENT]


def _native(table: sa.Table, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Instants that were turned into text for JSON, back as instants; only the table's columns."""
    instants = [c.name for c in table.columns if isinstance(c.type, t.UtcDateTime)]
    names = set(table.columns.keys())
    return [
        {
            name: datetime.fromisoformat(value)
            if name in instants and isinstance(value, str)
            else value
            for name, value in row.items()
            if name in names
        }
        for row in rows
    ]


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
    for chunk in _batched(sorted(case_ids)):
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
    query = (
        sa.select(s.ensemble)
        .where(s.reading == reading.value)
        .order_by(s.created_at.desc(), s.ensemble)
        .limit(1)
    )
    if dataset is not None:
        query = query.join(t.cases, t.cases.c.id == s.case_id).where(t.cases.c.dataset == dataset)
    return connection.scalar(query)


def _organ_score(row: Sequence[Any]) -> OrganScore:
    """A score out of the columns `_SIZES`."""
    organ, voxels, ml, pseudo_ml = row
    # Not validated again: it was when it went in, and a ranking reads 76,000 of them.
    return OrganScore.model_construct(
        organ=organ, attention_voxels=voxels, attention_ml=ml, pseudo_label_ml=pseudo_ml
    )


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
