"""The laws of the catalog, on SQLite and on a real PostgreSQL alike."""

from __future__ import annotations

import hashlib
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from atlas_core.catalog import Catalog, tables
from atlas_core.errors import ConfigurationError, Conflict, InvalidInput, NotFound, Unavailable
from atlas_core.loop import Iterations
from atlas_core.model_spec import ModelRef, ModelSpec, ensemble_key
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import (
    Case,
    Dataset,
    IterationState,
    Label,
    LabelSource,
    Model,
    OrganScore,
    Reading,
    Score,
)
from atlas_core.release.case_numbers import case_numbers
from child_processes import PATIENCE_S, SPAWN, open_and_add, start
from postgres import PASSWORD, PostgresServer, running_postgres

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
AFFINE = ((0.8, 0.0, 0.0, -1 / 3), (0.0, 0.8, 0.0, 2.0), (0.0, 0.0, 5.0, 3.0), (0.0, 0.0, 0.0, 1.0))


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


REFS = (
    ModelRef(name="unet", version=0, sha256=sha("unet")),
    ModelRef(name="nnunet", version=0, sha256=sha("nnunet")),
)
ENSEMBLE = ensemble_key(REFS)


def a_case(name: str, dataset: str = "lits") -> Case:
    return Case(
        id=f"{dataset}_{name}",
        dataset=dataset,
        content_sha256=sha(name),
        shape=(512, 512, 88),
        affine=AFFINE,
        source=f"volumes/{name}.nii.gz",
        imported_at=NOW,
    )


def a_label(case: Case, organ: str, source: LabelSource = LabelSource.ORIGINAL) -> Label:
    return Label(
        case_id=case.id,
        organ=organ,
        source=source,
        path=f"cases/{case.id}/labels/{organ}/{source}-{sha(organ)[:12]}.nii.gz",
        value=1,
        sha256=sha(organ),
        voxels=1234,
        volume_ml=1.5,
        models=REFS if source is LabelSource.PSEUDO else (),
        annotator="ada" if source is LabelSource.REVISED else None,
        created_at=NOW,
    )


def a_score(
    case: Case,
    ml: dict[str, float],
    *,
    reading: Reading = Reading.PAPER,
    refs: tuple[ModelRef, ...] = REFS,
    created_at: datetime = NOW,
) -> Score:
    return Score(
        case_id=case.id,
        reading=reading,
        ensemble=ensemble_key(refs),
        models=refs,
        organs=tuple(
            OrganScore(
                organ=o,
                attention_voxels=v * 100,
                attention_ml=v,
                pseudo_label_ml=v / 2,
                disagreement=v / 100,
                expected_ml=v,
                attended_ml=v / 3,
            )
            for o, v in ml.items()
        ),
        seconds=2.5,
        created_at=created_at,
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/folder/catalog.sqlite"
    address: str = request.getfixturevalue("postgresql_url")
    return address


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    with Catalog.open(url) as opened:
        opened.add_dataset(Dataset(name="lits", title="LiTS", organs=("liver",)))
        yield opened


def test_what_goes_in_comes_out(catalog: Catalog) -> None:
    case, label = a_case("a"), a_label(a_case("a"), "liver")
    pseudo = a_label(case, "spleen", LabelSource.PSEUDO)
    assert catalog.add_case(case, [label])
    assert catalog.add_labels([pseudo]) == 1
    assert catalog.case(case.id) == case
    assert catalog.find_case_by_content(case.content_sha256) == case
    assert catalog.find_case_by_content(sha("other")) is None
    assert catalog.labels(case.id) == [label, pseudo]
    assert catalog.labels(case.id, LabelSource.PSEUDO) == [pseudo]
    assert catalog.original_organs() == {case.id: frozenset({"liver"})}


def test_datasets_grow_but_forget_nothing(catalog: Catalog) -> None:
    catalog.add_dataset(Dataset(name="lits", licence="CC-BY-SA-4.0", organs=("spleen", "liver")))
    known = catalog.dataset("lits")
    assert known.title == "LiTS"
    assert known.licence == "CC-BY-SA-4.0"
    assert known.organs == ("liver", "spleen")
    catalog.add_dataset(Dataset(name="amos"))
    assert [d.name for d in catalog.datasets()] == ["amos", "lits"]
    with pytest.raises(NotFound, match="nothere"):
        catalog.dataset("nothere")


def test_the_same_case_again_is_no_error_and_may_bring_labels(catalog: Catalog) -> None:
    case = a_case("a")
    assert catalog.add_case(case, [a_label(case, "liver")])
    assert not catalog.add_case(case, [a_label(case, "liver"), a_label(case, "spleen")])
    assert [label.organ for label in catalog.labels(case.id)] == ["liver", "spleen"]
    assert len(catalog.cases()) == 1


def test_one_content_is_one_case(catalog: Catalog) -> None:
    catalog.add_dataset(Dataset(name="msd"))
    case = a_case("a")
    catalog.add_case(case)
    with pytest.raises(Conflict, match="in the catalog already"):
        catalog.add_case(a_case("a", "msd"))
    with pytest.raises(Conflict, match="belongs to another CT"):
        catalog.add_case(case.model_copy(update={"content_sha256": sha("b")}))
    assert catalog.cases() == [case]


def test_a_case_with_a_bad_label_leaves_nothing(catalog: Catalog) -> None:
    case = a_case("a")
    with pytest.raises(NotFound, match="lits_b"):
        catalog.add_case(case, [a_label(case, "liver"), a_label(a_case("b"), "liver")])
    assert catalog.cases() == []
    with pytest.raises(NotFound):
        catalog.add_case(a_case("a", "nodataset"))
    with pytest.raises(NotFound):
        catalog.case(case.id)
    with pytest.raises(NotFound):
        catalog.add_labels([a_label(case, "liver")])


def test_labels_cannot_be_changed_not_even_directly(catalog: Catalog, url: str) -> None:
    case = a_case("a")
    catalog.add_case(case, [a_label(case, "liver")])
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with pytest.raises(sa.exc.DBAPIError, match="labels are immutable"), engine.begin() as direct:
        direct.execute(sa.update(tables.labels).values(voxels=0))
    engine.dispose()
    assert catalog.labels(case.id) == [a_label(case, "liver")]


def test_deleting_a_case_takes_its_labels_and_scores(catalog: Catalog) -> None:
    case = a_case("a")
    catalog.add_case(case, [a_label(case, "liver")])
    catalog.record_score(a_score(case, {"liver": 1.0}))
    catalog.delete_case(case.id)
    assert catalog.labels(case.id) == []
    assert catalog.scored_cases(Reading.PAPER, ENSEMBLE) == {}
    with pytest.raises(NotFound):
        catalog.delete_case(case.id)


def test_models_are_registered_once(catalog: Catalog) -> None:
    spec = ModelSpec(
        name="unet",
        version=1,
        architecture="unet",
        organs=ABDOMEN_ATLAS.names,
        spacing_mm=(1.5, 1.5, 1.5),
        patch=(96, 96, 96),
        hu_window=(-175, 250),
        sha256=sha("unet"),
    )
    model = Model(
        spec=spec, parent=REFS[0], metrics={"dice": 0.9}, provenance={"seed": "1"}, created_at=NOW
    )
    other = model.model_copy(
        update={"spec": spec.model_copy(update={"name": "nnunet"}), "parent": None}
    )
    assert catalog.register_model(model)
    assert not catalog.register_model(model)
    assert catalog.register_model(other)
    assert catalog.models() == [other, model]
    assert catalog.models("unet") == [model]


def test_the_first_score_stays(catalog: Catalog) -> None:
    case = a_case("a")
    catalog.add_case(case)
    score = a_score(case, {"liver": 1.0, "aorta": 2.0})
    pseudo = a_label(case, "liver", LabelSource.PSEUDO)
    assert catalog.record_score(score, [pseudo])
    assert not catalog.record_score(a_score(case, {"liver": 9.0}))
    found = catalog.score(case.id, Reading.PAPER, ENSEMBLE)
    assert found is not None
    assert {o.organ: o for o in found.organs} == {o.organ: o for o in score.organs}
    assert set(found.models) == set(REFS)
    assert catalog.labels(case.id) == [pseudo]
    assert catalog.scored_cases(Reading.PAPER, ENSEMBLE) == {case.id: 1}
    assert catalog.scored_cases(Reading.RELEASED, ENSEMBLE) == {}
    assert catalog.score(case.id, Reading.RELEASED, ENSEMBLE) is None
    assert catalog.delete_score(case.id, Reading.PAPER, ENSEMBLE)
    assert not catalog.delete_score(case.id, Reading.PAPER, ENSEMBLE)
    assert catalog.record_score(a_score(case, {"liver": 9.0}))


def test_the_score_of_another_result_takes_its_place(catalog: Catalog) -> None:
    case = a_case("a")
    catalog.add_case(case)
    first, later = a_label(case, "liver", LabelSource.PSEUDO), a_label(case, "liver")
    catalog.record_score(a_score(case, {"liver": 1.0, "aorta": 2.0}), [first])
    again = a_score(case, {"liver": 9.0}).model_copy(update={"number": 2})
    assert catalog.record_score(again, [later])
    assert not catalog.record_score(again)
    found = catalog.score(case.id, Reading.PAPER, ENSEMBLE)
    assert found is not None
    assert (found.number, found.organs) == (2, again.organs)
    assert catalog.scored_cases(Reading.PAPER, ENSEMBLE) == {case.id: 2}
    assert catalog.labels(case.id) == [first, later]
    with pytest.raises(NotFound):  # its labels cannot be stored: the score in force stays
        third = again.model_copy(update={"number": 3})
        catalog.record_score(third, [a_label(a_case("b"), "liver")])
    assert catalog.score(case.id, Reading.PAPER, ENSEMBLE) == found


def test_releases_number_every_case_once(catalog: Catalog) -> None:
    cases = [a_case(name) for name in "abcdef"]
    first = case_numbers(catalog, cases[:2])
    with ThreadPoolExecutor(4) as pool:
        all_at_once = list(pool.map(lambda _: case_numbers(catalog, cases), range(4)))
    assert all(numbers == all_at_once[0] for numbers in all_at_once)
    assert all_at_once[0].items() >= first.items()
    assert len(set(all_at_once[0].values())) == len(cases)


def test_a_score_of_an_unknown_case_leaves_nothing(catalog: Catalog) -> None:
    with pytest.raises(NotFound, match="lits_b"):
        catalog.record_score(a_score(a_case("b"), {"liver": 1.0}))
    assert catalog.ranking(Reading.PAPER) == []


def test_the_ranking_leaves_out_original_organs_case_by_case(catalog: Catalog) -> None:
    a, b, c = a_case("a"), a_case("b"), a_case("c")
    sizes = {"liver": 5.0, "spleen": 1.0, "aorta": 2.0}
    catalog.add_case(a, [a_label(a, "liver")])
    catalog.add_case(b, [a_label(b, "spleen", LabelSource.REVISED)])
    catalog.add_case(c)  # not scored
    for case in (a, b):
        catalog.record_score(a_score(case, sizes))
    first, second = catalog.ranking(Reading.PAPER)
    assert (first.rank, first.case_id, first.attention_ml, first.left_out) == (1, b.id, 8.0, ())
    assert [organ.organ for organ in first.organs] == ["liver", "aorta", "spleen"]
    assert (second.rank, second.case_id, second.attention_ml) == (2, a.id, 3.0)
    assert second.left_out == ("liver",)
    assert second.attention_voxels == 300.0


def test_the_ranking_takes_the_newest_ensemble_unless_told(catalog: Catalog) -> None:
    catalog.add_dataset(Dataset(name="word"))
    a, b = a_case("a"), a_case("b", "word")
    newer = tuple(ref.model_copy(update={"version": 1}) for ref in REFS)
    for case in (a, b):
        catalog.add_case(case)
        catalog.record_score(a_score(case, {"liver": 1.0}))
    catalog.record_score(
        a_score(a, {"liver": 7.0}, refs=newer, created_at=NOW + timedelta(seconds=1))
    )
    assert [row.case_id for row in catalog.ranking(Reading.PAPER)] == [a.id]
    assert len(catalog.ranking(Reading.PAPER, ENSEMBLE)) == 2
    assert [row.case_id for row in catalog.ranking(Reading.PAPER, dataset="word")] == [b.id]
    assert catalog.ranking(Reading.RELEASED) == []
    assert catalog.latest_ensemble(Reading.PAPER) == ensemble_key(newer)


def test_a_scored_case_without_organs_stays_in_the_list(catalog: Catalog) -> None:
    case = a_case("a")
    catalog.add_case(case)
    catalog.record_score(a_score(case, {}))
    (row,) = catalog.ranking(Reading.PAPER)
    assert (row.attention_ml, row.organs) == (0.0, ())


def test_a_full_atlas_is_ranked_in_two_queries(catalog: Catalog) -> None:
    """8,448 cases × 9 organs (the paper's): counted are queries, not seconds."""
    cases = [a_case(f"{n:05}") for n in range(8448)]
    with catalog.transaction(write=True) as connection:
        connection.execute(sa.insert(tables.cases), [case.model_dump() for case in cases])
        connection.execute(sa.insert(tables.ensembles), [{"key": ENSEMBLE}])
        c, scored = tables.cases.c, tables.scores
        connection.execute(
            sa.insert(scored).from_select(
                ["case_id", "reading", "ensemble", "seconds", "created_at"],
                sa.select(
                    c.id, sa.literal("paper"), sa.literal(ENSEMBLE), sa.literal(1.0), c.imported_at
                ),
            )
        )
        connection.execute(sa.text("ANALYZE"))  # as a running database does by itself
        number = sa.cast(sa.func.substr(scored.c.case_id, 6), sa.Integer)
        for organ in ABDOMEN_ATLAS.names:
            key = (scored.c.case_id, scored.c.reading, scored.c.ensemble, sa.literal(organ))
            connection.execute(
                sa.insert(tables.organ_scores).from_select(
                    list(tables.organ_scores.c.keys())[:9],
                    sa.select(
                        *key,
                        number * 1000.0,
                        number * 1.0,
                        sa.literal(1.0),
                        number / 10_000.0,
                        sa.literal(1.0),
                    ),
                )
            )
    assert catalog.add_labels([a_label(case, "liver") for case in cases[:1000]]) == 1000
    statements: list[str] = []
    sa.event.listen(
        catalog.engine,
        "before_cursor_execute",
        lambda conn, cursor, statement, *rest: statements.append(statement),
    )
    ranking = catalog.ranking(Reading.PAPER, ENSEMBLE)
    assert len([s for s in statements if s.startswith("SELECT")]) == 2
    assert [row.rank for row in ranking] == list(range(1, 8449))
    assert ranking[0].case_id == cases[-1].id
    assert ranking[0].attention_ml == 9.0 * 8447
    assert sum(row.left_out == ("liver",) for row in ranking) == 1000


def test_iterations_follow_each_other(catalog: Catalog) -> None:
    iterations = Iterations(catalog)
    first = iterations.start({"top": 0.05})
    with pytest.raises(Conflict, match="iteration 0 is still open"):
        iterations.start({})
    with pytest.raises(InvalidInput):
        iterations.finish(0, IterationState.OPEN)
    done = iterations.finish(0, IterationState.DONE)
    with pytest.raises(Conflict, match="closed already"):
        iterations.finish(0, IterationState.FAILED)
    with pytest.raises(NotFound):
        iterations.finish(7, IterationState.DONE)
    assert (first.t, first.state, first.parameters) == (0, IterationState.OPEN, {"top": 0.05})
    assert done.finished_at is not None
    assert done.finished_at >= first.started_at
    assert iterations.start({}).t == 1
    assert [iteration.t for iteration in iterations.all()] == [0, 1]


def test_the_migrations_build_the_tables_of_the_code(catalog: Catalog) -> None:
    with catalog.transaction(write=False) as connection:
        context = MigrationContext.configure(
            connection,
            opts={"version_table": tables.VERSION_TABLE, "compare_type": True},
        )
        assert compare_metadata(context, tables.metadata) == []


def test_opening_again_changes_nothing(catalog: Catalog, url: str) -> None:
    catalog.add_case(a_case("a"))
    for migrate in (True, False):
        with Catalog.open(url, migrate=migrate) as again:
            assert again.cases() == [a_case("a")]


def test_a_newer_schema_is_refused(catalog: Catalog, url: str) -> None:
    with catalog.transaction(write=True) as connection:
        connection.execute(sa.text(f"UPDATE {tables.VERSION_TABLE} SET version_num = '9999'"))
    for migrate in (True, False):
        with pytest.raises(ConfigurationError, match="newer than this version") as refused:
            Catalog.open(url, migrate=migrate)
        assert "9999" in str(refused.value)


def test_without_migration_an_empty_database_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="older than this version"):
        Catalog.open(url, migrate=False)


def test_a_foreign_database_is_left_alone(url: str) -> None:
    Catalog.open(url).close()
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(sa.text(f"DROP TABLE {tables.VERSION_TABLE}"))
    engine.dispose()
    with pytest.raises(ConfigurationError, match="database of its own"):
        Catalog.open(url)


def test_many_processes_may_open_a_new_catalog_at_once(url: str) -> None:
    together = SPAWN.Barrier(6)
    processes = [
        start(open_and_add, url, [a_case("shared"), a_case(f"own{number}")], together)
        for number in range(6)
    ]
    for process in processes:
        process.join(timeout=PATIENCE_S)
    assert [process.exitcode for process in processes] == [0] * 6
    with Catalog.open(url) as catalog:
        assert len(catalog.cases()) == 7


def test_threads_share_a_catalog(catalog: Catalog) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(10):
                case = a_case(f"{number}x{turn}")
                catalog.add_case(case, [a_label(case, "liver")])
                catalog.record_score(a_score(case, {"liver": 1.0}))
                catalog.ranking(Reading.PAPER)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(catalog.ranking(Reading.PAPER)) == 40


def test_a_dropped_connection_is_replaced(
    postgresql_url: str, postgres_server: PostgresServer
) -> None:
    with Catalog.open(postgresql_url) as catalog:
        catalog.add_dataset(Dataset(name="lits"))
        name = postgresql_url.rpartition("/")[2]
        postgres_server.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        assert [dataset.name for dataset in catalog.datasets()] == ["lits"]


def test_a_server_that_stops_is_unavailable_and_its_password_stays_secret() -> None:
    with ExitStack() as running:
        server = running.enter_context(running_postgres())
        catalog = running.enter_context(Catalog.open(server.url("postgres")))
        running.pop_all().close()
        with pytest.raises(Unavailable, match=f"127.0.0.1:{server.port}") as caught:
            catalog.add_dataset(Dataset(name="lits"))
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
