"""The revision queue and the label versions, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from atlas_core.catalog import Catalog
from atlas_core.catalog import tables as t
from atlas_core.errors import AtlasError, Conflict, InvalidInput, NotFound
from atlas_core.loop import review_outcome
from atlas_core.records import Label, LabelSource, RankBy
from atlas_core.review import (
    NO_BASE,
    QUEUE_DRAINED,
    Annotator,
    AuditLog,
    Draft,
    Drafts,
    LabelVersions,
    NotHeld,
    OutgoingEvents,
    Portion,
    ReviewStatistics,
    RevisionQueue,
    StaleBase,
    Submission,
    TaskFilter,
    TaskState,
    Verdict,
)
from review_load import ORGAN, fill_catalog

CASES = 40
ANN, BOB = Annotator("ann"), Annotator("bob")
RITA, REX = Annotator("rita", second_reader=True), Annotator("rex", second_reader=True)
LEASE = timedelta(minutes=10)


class Clock:
    """A clock that goes when it is told."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 2, 9, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def go(self, **step: float) -> None:
        self.now += timedelta(**step)


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Catalog]:
    url = f"sqlite:///{tmp_path}/catalog.sqlite"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql_url")
    with Catalog.open(url) as opened:
        fill_catalog(opened, CASES)
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(catalog: Catalog, clock: Clock) -> RevisionQueue:
    return RevisionQueue(catalog, lease=LEASE, clock=clock)


@pytest.fixture
def versions(catalog: Catalog, clock: Clock) -> LabelVersions:
    return LabelVersions(catalog, clock=clock)


def handed_in(
    case_id: str, author: str, base: str, number: int = 1, task_id: int | None = None
) -> Submission:
    return Submission(
        case_id=case_id,
        organ=ORGAN,
        path=f"cases/{case_id}/labels/{ORGAN}/revised-{author}-{number}.nii.gz",
        sha256=f"{number:064x}",
        voxels=10,
        volume_ml=1.0,
        author=Annotator(author, second_reader=True),  # who needs no lease
        base=base,
        task_id=task_id,
    )


def test_the_portion_is_a_share_a_number_or_a_time() -> None:
    assert Portion(share=0.05).of(8448) == 423
    assert Portion(share=0.07).of(100) == 7
    assert Portion(count=500).of(40) == 40
    assert Portion(minutes=59).of(40) == 3
    for wrong in ({}, {"share": 2.0}, {"share": 0.5, "count": 1}, {"count": 0}):
        with pytest.raises(InvalidInput):
            Portion(**wrong)  # type: ignore[arg-type]


def test_a_case_that_has_a_task_gets_no_second_one(queue: RevisionQueue) -> None:
    again = queue.open_tasks(Portion(count=10), "manager")
    assert (again.created, again.already, again.tasks) == (0, 10, ())


def test_a_task_lists_every_organ_that_counts(tmp_path: Path) -> None:
    with Catalog.open(f"sqlite:///{tmp_path}/c.sqlite") as catalog:
        fill_catalog(catalog, 3)
        queue = RevisionQueue(catalog)
        task = queue.task(1)
        assert len(task.organs) == 9
        assert task.attention_ml == pytest.approx(9 * 3)
        assert (task.ranked_by, task.disagreement) == (RankBy.DISAGREEMENT, pytest.approx(0.75))
        assert [organ.weight for organ in task.organs] == [0.75] * 9


def test_the_queue_follows_the_order_that_was_asked_for(tmp_path: Path) -> None:
    """Case 2 of three has least attention and the models that differ most, in the spleen."""
    with Catalog.open(f"sqlite:///{tmp_path}/c.sqlite") as catalog:
        fill_catalog(catalog, 3, queue=False)
        with catalog.transaction(write=True) as connection:
            o = t.organ_scores.c
            worst = (o.case_id == "Many_00002") & (o.organ == "spleen")
            connection.execute(sa.update(t.organ_scores).where(worst).values(disagreement=0.99))
        queue = RevisionQueue(catalog)
        queue.open_tasks(Portion(count=1), "manager", by=RankBy.SIZE)
        (by_size,) = queue.page(TaskFilter(), 0, 10)[1]
        assert (by_size.case_id, by_size.ranked_by) == ("Many_00000", RankBy.SIZE)
        assert {organ.weight for organ in by_size.organs} == {3.0}  # millilitres
        queue.open_tasks(Portion(share=1.0), "manager", organs=["spleen"])
        tasks = {task.case_id: task for task in queue.page(TaskFilter(), 0, 10)[1]}
        assert tasks["Many_00002"].rank == 1
        assert [organ.organ for organ in tasks["Many_00002"].organs] == ["spleen"]
        assert tasks["Many_00000"] == by_size  # a case is queued once


def test_a_list_that_mixes_scores_is_refused_and_opens_nothing(tmp_path: Path) -> None:
    with Catalog.open(f"sqlite:///{tmp_path}/c.sqlite") as catalog:
        fill_catalog(catalog, 3, queue=False)
        with catalog.transaction(write=True) as connection:
            old = sa.update(t.organ_scores).where(t.organ_scores.c.case_id == "Many_00001")
            connection.execute(old.values(disagreement=None))
        queue = RevisionQueue(catalog)
        with pytest.raises(Conflict, match=r"1 of 3 cases.*atlasloop score --force"):
            queue.open_tasks(Portion(share=1.0), "manager")
        assert queue.page(TaskFilter(), 0, 10) == (0, [])
        assert queue.open_tasks(Portion(share=1.0), "manager", by=RankBy.SIZE).created == 3


def test_each_annotator_gets_the_next_case_by_rank(queue: RevisionQueue) -> None:
    first, second = queue.next(ANN), queue.next(BOB)
    assert first is not None and second is not None
    assert (first.rank, second.rank) == (1, 2)
    assert first.state is TaskState.LEASED
    assert first.assignee == "ann"
    counts = queue.counts(TaskFilter())
    assert (counts.open, counts.leased) == (CASES - 2, 2)


def test_asking_again_gives_the_case_back_for_others(queue: RevisionQueue) -> None:
    first, second = queue.next(ANN), queue.next(ANN)
    assert first is not None and second is not None
    assert second.rank == first.rank + 1
    other = queue.next(BOB)
    assert other is not None and other.id == first.id
    assert [entry.action for entry in queue.history(first.id)][-3:] == [
        "lease",
        "give back",
        "lease",
    ]


def test_a_lease_ends_by_itself_and_can_be_renewed(queue: RevisionQueue, clock: Clock) -> None:
    mine = queue.next(ANN)
    assert mine is not None
    clock.go(minutes=9)
    queue.lease(mine.id, ANN)
    clock.go(minutes=9)
    with pytest.raises(Conflict, match="another annotator"):
        queue.lease(mine.id, BOB)
    clock.go(minutes=2)
    taken = queue.next(BOB)
    assert taken is not None and taken.id == mine.id
    with pytest.raises(Conflict, match="another annotator"):
        queue.confirm(mine.id, ANN, 60)


def test_who_drew_longer_than_the_lease_may_still_hand_in(
    queue: RevisionQueue, clock: Clock
) -> None:
    mine = queue.next(ANN)
    assert mine is not None
    clock.go(hours=3)
    assert queue.task(mine.id).state is TaskState.OPEN
    assert queue.confirm(mine.id, ANN, 3 * 3600).state is TaskState.CONFIRMED


def test_a_lease_is_resumed_while_nobody_has_taken_the_case_and_never_cut_short(
    queue: RevisionQueue, catalog: Catalog, clock: Clock
) -> None:
    """A program without a page has leases of hours; a page of the same person does not end them."""
    long = RevisionQueue(catalog, lease=timedelta(hours=8), clock=clock)
    assert long.resume(ANN) is None
    mine = long.next(ANN)
    assert mine is not None and mine.lease_expires_at == clock.now + timedelta(hours=8)
    for task in (queue.lease(mine.id, ANN), queue.resume(ANN)):
        assert task is not None and task.lease_expires_at == mine.lease_expires_at
    other = queue.next(BOB)
    assert other is not None and other.id != mine.id
    clock.go(hours=9)
    again = long.resume(ANN, TaskFilter(case_id=mine.case_id))
    assert again is not None and again.lease_expires_at == clock.now + timedelta(hours=8)
    assert long.resume(ANN, TaskFilter(case_id=other.case_id)) is None
    clock.go(hours=9)
    assert queue.lease(mine.id, BOB).assignee == "bob"
    assert long.resume(ANN) is None


def test_only_what_was_looked_at_is_confirmed(queue: RevisionQueue) -> None:
    task = queue.next(ANN)
    assert task is not None
    with pytest.raises(InvalidInput, match="no organ was looked at"):
        queue.confirm(task.id, ANN, 60, visited=[])
    assert queue.task(task.id).state is TaskState.LEASED  # nothing happened
    first, *others = (one.organ for one in task.organs)
    done = queue.confirm(task.id, ANN, 60, visited=[first])
    assert done.state is TaskState.CONFIRMED
    assert done.without_verdict == tuple(others)


def test_a_verdict_is_taken_back(queue: RevisionQueue) -> None:
    task = queue.next(ANN)
    assert task is not None
    organ = task.organs[0].organ
    queue.judge(task.id, ANN, organ, Verdict.CONFIRMED)
    assert organ in queue.judge(task.id, ANN, organ, None).without_verdict


def test_who_ended_a_task_takes_that_back_until_its_labels_are_assembled(
    queue: RevisionQueue, catalog: Catalog, clock: Clock
) -> None:
    task = queue.next(ANN)
    assert task is not None
    with pytest.raises(Conflict, match="not finished"):
        queue.take_back(task.id, ANN)
    queue.confirm(task.id, ANN, 60)
    with pytest.raises(Conflict, match="somebody else"):
        queue.take_back(task.id, BOB)
    clock.go(minutes=5)
    again = queue.take_back(task.id, ANN)
    assert (again.state, again.assignee) == (TaskState.LEASED, "ann")
    assert all(one.verdict is Verdict.CONFIRMED for one in again.organs)  # to be changed
    queue.confirm(task.id, ANN, 60)
    clock.go(minutes=5)
    with catalog.transaction(write=True) as connection:
        row = {
            "case_id": task.case_id, "path": "x", "sha256": "0" * 64, "inputs_sha256": "0" * 64,
            "organs": {}, "missing": [], "created_at": clock.now,
        }  # fmt: skip
        connection.execute(sa.insert(t.assemblies).values(row))
    with pytest.raises(Conflict, match="assembled since"):
        queue.take_back(task.id, ANN)


def test_the_draft_of_a_skipped_case_is_kept_for_a_while(
    queue: RevisionQueue, catalog: Catalog, clock: Clock
) -> None:
    drafts = Drafts(catalog)
    skipped, open_task = queue.next(ANN), queue.next(BOB)
    assert skipped is not None and open_task is not None
    for task, author in ((skipped, "ann"), (open_task, "bob")):
        drafts.save(
            Draft(task_id=task.id, author=author, path=author, sha256="0" * 64, base={},
                  saved_at=clock.now)
        )  # fmt: skip
    queue.skip(skipped.id, ANN, "later")
    assert drafts.drop_skipped(clock.now) == []
    assert drafts.exists(skipped.id, "ann")
    assert drafts.drop_skipped(clock.now + timedelta(seconds=1)) == ["ann"]
    assert not drafts.exists(skipped.id, "ann")
    assert drafts.exists(open_task.id, "bob")


def test_nothing_is_left_when_others_hold_everything(queue: RevisionQueue) -> None:
    people = [Annotator(f"a{n}") for n in range(CASES)]
    held = queue.next_for([(one, TaskFilter()) for one in people])
    assert len({task.id for task in held if task}) == CASES
    assert queue.next(ANN) is None
    kept = queue.next(people[0])
    assert kept is not None and held[0] is not None and kept.id == held[0].id


def test_filters_and_the_strategy_of_an_organ(queue: RevisionQueue) -> None:
    assert queue.next(ANN, TaskFilter(dataset="Other")) is None
    assert queue.next(ANN, TaskFilter(organ="spleen")) is not None
    assert queue.next(ANN, TaskFilter(organ="heart")) is None
    assert queue.page(TaskFilter(state=TaskState.LEASED), 0, 10)[0] == 0


def test_threads_never_share_a_case(queue: RevisionQueue) -> None:
    def work(number: int) -> list[int]:
        me, done = Annotator(f"a{number}"), []
        while (task := queue.next(me)) is not None:
            queue.confirm(task.id, me, 1)
            done.append(task.id)
        return done

    with ThreadPoolExecutor(8) as pool:
        done = [number for part in pool.map(work, range(8)) for number in part]
    assert sorted(done) == list(range(1, CASES + 1))


def test_verdicts_belong_to_organs_and_decide_what_may_be_confirmed(queue: RevisionQueue) -> None:
    task = queue.next(ANN)
    assert task is not None
    with pytest.raises(InvalidInput, match="unknown error type"):
        queue.judge(task.id, ANN, "liver", Verdict.NEEDS_REVISION, error_type="bad")
    with pytest.raises(NotFound, match="not about this organ"):
        queue.judge(task.id, ANN, "heart", Verdict.CONFIRMED)
    queue.judge(
        task.id, ANN, "stomach", Verdict.NEEDS_REVISION, error_type="missing_cavity", comment="top"
    )
    with pytest.raises(Conflict, match="need revision"):
        queue.confirm(task.id, ANN, 60)
    queue.judge(task.id, ANN, "stomach", Verdict.CONFIRMED)
    done = queue.confirm(task.id, ANN, 60)
    assert {organ.verdict for organ in done.organs} == {Verdict.CONFIRMED}
    with pytest.raises(Conflict, match="finished"):
        queue.judge(task.id, ANN, "stomach", Verdict.CONFIRMED)


def test_a_second_reader_is_somebody_else_with_that_role(queue: RevisionQueue) -> None:
    task = queue.next(RITA)
    assert task is not None
    queue.ask_second_reader(task.id, RITA, "is this a tumour?")
    assert queue.task(task.id).state is TaskState.SECOND_READING
    for wrong in (RITA, ANN):
        with pytest.raises(Conflict, match="second reader"):
            queue.lease(task.id, wrong)
        other = queue.next(wrong)
        assert other is not None and other.id != task.id
    second = queue.next(REX)
    assert second is not None and second.id == task.id and second.second_reader
    assert queue.confirm(task.id, REX, 30).state is TaskState.CONFIRMED


def test_skipped_and_finished_cases_can_be_opened_again(queue: RevisionQueue) -> None:
    task = queue.next(ANN)
    assert task is not None
    with pytest.raises(InvalidInput, match="reason"):
        queue.skip(task.id, ANN, "  ")
    queue.skip(task.id, ANN, "no contrast")
    assert queue.next(BOB) != task
    queue.reopen(task.id, "rita", "try again")
    again = queue.next(REX)
    assert again is not None and again.id == task.id
    with pytest.raises(Conflict, match="not finished"):
        queue.reopen(task.id, "rita", "again")
    assert [entry.action for entry in queue.history(task.id)] == [
        "queue", "lease", "skipped", "reopen", "lease",
    ]  # fmt: skip


def test_a_revision_is_made_of_the_newest_labels(
    queue: RevisionQueue, versions: LabelVersions
) -> None:
    task = queue.next(ANN)
    assert task is not None
    first = versions.submit(handed_in(task.case_id, "ann", NO_BASE, 1))
    second = versions.submit(handed_in(task.case_id, "ann", first.id, 2))
    with pytest.raises(Conflict, match="changed by somebody else"):
        queue.revise(task.id, ANN, 60, {ORGAN: first.id})
    with pytest.raises(NotFound):
        queue.revise(task.id, ANN, 60, {ORGAN: "9999"})
    with pytest.raises(InvalidInput):
        queue.revise(task.id, ANN, 60, {})
    queue.judge(task.id, ANN, ORGAN, Verdict.CONFIRMED)  # and then drawn in all the same
    done = queue.revise(task.id, ANN, 60, {ORGAN: second.id})
    assert done.state is TaskState.REVISED
    judged = {organ.organ: organ.verdict for organ in done.organs}
    assert judged[ORGAN] is Verdict.NEEDS_REVISION
    assert judged["spleen"] is None


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("said", [None, Verdict.CONFIRMED, Verdict.NEEDS_REVISION])
def test_who_hands_in_a_label_and_confirms_has_revised(
    catalog: Catalog,
    queue: RevisionQueue,
    versions: LabelVersions,
    clock: Clock,
    named: bool,
    said: Verdict | None,
) -> None:
    """Also where the label came without the task's id, and whatever was said of the organ."""
    clock.now = datetime.now(UTC) + timedelta(minutes=1)
    task = queue.next(ANN)
    assert task is not None
    if said is not None:
        queue.judge(task.id, ANN, ORGAN, said)
    label = versions.submit(
        handed_in(task.case_id, "ann", NO_BASE, task_id=task.id if named else None)
    )
    done = queue.confirm(task.id, ANN, 90)
    assert done.state is TaskState.REVISED
    judged = {organ.organ: organ.verdict for organ in done.organs}
    assert judged.pop(ORGAN) is Verdict.NEEDS_REVISION
    assert set(judged.values()) == {Verdict.CONFIRMED}
    end = queue.history(task.id)[-1]
    assert (end.action, end.detail["labels"]) == ("revised", {ORGAN: label.id})
    assert (queue.counts(TaskFilter()).revised, queue.counts(TaskFilter()).confirmed) == (1, 0)
    outcome = review_outcome(catalog, [task.id])
    assert (outcome.revised, outcome.confirmed_share, outcome.seconds) == (1, 0.0, 90)
    with catalog.transaction(write=False) as connection:
        assert connection.scalars(sa.select(t.revision_work.c.outcome)).all() == ["revised"]


def test_a_case_that_was_revised_once_stays_revised_when_it_is_confirmed_again(
    queue: RevisionQueue, versions: LabelVersions
) -> None:
    """By the second reader of it, and by whoever reads it after it was opened again."""
    task = queue.next(ANN)
    assert task is not None
    versions.submit(handed_in(task.case_id, "ann", NO_BASE, task_id=task.id))
    queue.ask_second_reader(task.id, ANN, "is this the fundus?")
    assert queue.confirm(task.id, RITA, 30).state is TaskState.REVISED
    queue.reopen(task.id, "rita", "once more")
    assert queue.confirm(task.id, BOB, 30).state is TaskState.REVISED


def test_a_revision_counts_every_organ_that_got_a_label(
    queue: RevisionQueue, versions: LabelVersions
) -> None:
    task = queue.next(ANN)
    assert task is not None
    versions.submit(handed_in(task.case_id, "ann", NO_BASE, 1, task.id))
    spleen = versions.submit(
        replace(handed_in(task.case_id, "ann", NO_BASE, 2, task.id), organ="spleen")
    )
    done = queue.revise(task.id, ANN, 60, {"spleen": spleen.id})
    judged = {organ.organ for organ in done.organs if organ.verdict is Verdict.NEEDS_REVISION}
    assert judged == {ORGAN, "spleen"}


def test_labels_of_another_time_do_not_make_a_confirmed_case_revised(
    queue: RevisionQueue, versions: LabelVersions, clock: Clock
) -> None:
    """Handed in before the task was opened, or kept as a proposal, which no label is."""
    task = queue.next(ANN)
    assert task is not None
    clock.now = datetime(2020, 1, 1, tzinfo=UTC)
    versions.submit(handed_in(task.case_id, "ann", NO_BASE, 1))
    with pytest.raises(StaleBase):
        versions.submit(handed_in(task.case_id, "ann", NO_BASE, 2, task.id))
    assert queue.confirm(task.id, ANN, 60).state is TaskState.CONFIRMED


def test_of_two_labels_from_one_base_both_are_kept(versions: LabelVersions) -> None:
    first = versions.submit(handed_in("Many_00000", "ann", NO_BASE, 1))
    with pytest.raises(StaleBase) as caught:
        versions.submit(handed_in("Many_00000", "bob", NO_BASE, 2))
    assert caught.value.current == first
    assert caught.value.submitted.id.startswith("proposal-")
    found = versions.versions("Many_00000", ORGAN)
    assert [one.author for one in found] == ["ann", "bob"]
    assert [one.in_force for one in found] == [True, False]
    resolved = versions.submit(handed_in("Many_00000", "bob", first.id, 3))
    assert resolved.in_force
    assert resolved.base == first.id


def test_a_proposal_is_none_of_the_labels_that_assembly_sees(
    catalog: Catalog, versions: LabelVersions
) -> None:
    versions.submit(handed_in("Many_00000", "ann", NO_BASE, 1))
    with pytest.raises(StaleBase):
        versions.submit(handed_in("Many_00000", "bob", NO_BASE, 2))
    assert [label.annotator for label in catalog.labels("Many_00000")] == ["ann"]


def by_annotator(submission: Submission) -> Submission:
    """The same by somebody who is no reader."""
    return replace(submission, author=Annotator(submission.author.name))


def test_a_label_comes_into_force_by_the_lease_of_its_case(
    catalog: Catalog, queue: RevisionQueue, versions: LabelVersions
) -> None:
    task = queue.next(ANN)
    assert task is not None
    by_ann = by_annotator(handed_in(task.case_id, "ann", NO_BASE, 1))
    by_bob = by_annotator(handed_in(task.case_id, "bob", NO_BASE, 2, task.id))
    with pytest.raises(NotHeld) as kept:
        versions.submit(by_bob)
    assert not kept.value.submitted.in_force
    assert catalog.labels(task.case_id) == []
    first = versions.submit(by_ann)
    assert first.in_force
    queue.release(task.id, ANN)
    with pytest.raises(NotHeld):
        versions.submit(by_annotator(handed_in(task.case_id, "ann", first.id, 3)))
    assert versions.in_force(task.case_id)[ORGAN] == first


def test_an_expired_lease_holds_until_somebody_else_takes_the_case(
    queue: RevisionQueue, versions: LabelVersions, clock: Clock
) -> None:
    task = queue.next(ANN)
    assert task is not None
    clock.now += timedelta(days=1)
    first = versions.submit(by_annotator(handed_in(task.case_id, "ann", NO_BASE, 1)))
    queue.lease(task.id, BOB)
    with pytest.raises(NotHeld):
        versions.submit(by_annotator(handed_in(task.case_id, "ann", first.id, 2)))


def test_a_finished_or_passed_on_case_is_nobodys(
    queue: RevisionQueue, versions: LabelVersions
) -> None:
    for end in (
        lambda task: queue.confirm(task.id, ANN, 60),
        lambda task: queue.ask_second_reader(task.id, ANN, "fundus?"),
    ):
        task = queue.next(ANN)
        assert task is not None
        end(task)
        with pytest.raises(NotHeld):
            versions.submit(by_annotator(handed_in(task.case_id, "ann", NO_BASE, 1)))
        assert versions.in_force(task.case_id) == {}
        assert versions.submit(handed_in(task.case_id, "rita", NO_BASE, 2)).in_force


def test_what_others_hand_in_does_not_decide_how_a_task_ends(
    queue: RevisionQueue, versions: LabelVersions
) -> None:
    task = queue.next(ANN)
    assert task is not None
    with pytest.raises(NotHeld):
        versions.submit(by_annotator(handed_in(task.case_id, "bob", NO_BASE, 1, task.id)))
    versions.submit(handed_in(task.case_id, "rita", NO_BASE, 2, task.id))
    assert queue.confirm(task.id, ANN, 60).state is TaskState.CONFIRMED


def test_a_proposal_is_accepted_by_the_holder_of_the_case_over_what_they_saw(
    catalog: Catalog, queue: RevisionQueue, versions: LabelVersions
) -> None:
    task = queue.next(ANN)
    assert task is not None
    with pytest.raises(NotHeld) as kept:
        versions.submit(by_annotator(handed_in(task.case_id, "bob", NO_BASE, 1)))
    proposal = kept.value.submitted.id
    assert [one.id for one in versions.proposals(0, 10)[1]] == [proposal]
    with pytest.raises(Conflict, match="holds the case"):
        versions.accept(task.case_id, proposal, BOB, NO_BASE)
    first = versions.submit(handed_in(task.case_id, "ann", NO_BASE, 2))
    with pytest.raises(Conflict, match="changed by somebody else"):
        versions.accept(task.case_id, proposal, ANN, NO_BASE)
    accepted = versions.accept(task.case_id, proposal, ANN, first.id)
    assert (accepted.author, accepted.in_force) == ("bob", True)
    assert versions.latest(task.case_id)[ORGAN] == accepted
    assert versions.proposals(0, 10) == (0, [])
    assert {label.annotator for label in catalog.labels(task.case_id)} == {"ann", "bob"}
    with pytest.raises(NotFound):
        versions.accept(task.case_id, proposal, ANN, accepted.id)


def test_a_proposal_that_is_sent_again_is_one(
    queue: RevisionQueue, versions: LabelVersions
) -> None:
    again = by_annotator(handed_in("Many_00000", "bob", NO_BASE, 1))
    for _ in range(2):
        with pytest.raises(NotHeld):
            versions.submit(again)
    assert versions.proposals(0, 10)[0] == 1


def test_sending_the_same_label_twice_is_one_version(versions: LabelVersions) -> None:
    first = versions.submit(handed_in("Many_00000", "ann", NO_BASE, 1))
    again = versions.submit(handed_in("Many_00000", "ann", NO_BASE, 1))
    assert again == first
    assert len(versions.versions("Many_00000")) == 1


def test_going_back_to_an_older_mask_is_a_new_version(versions: LabelVersions) -> None:
    first = versions.submit(handed_in("Many_00000", "ann", NO_BASE, 1))
    second = versions.submit(handed_in("Many_00000", "ann", first.id, 2))
    back = handed_in("Many_00000", "bob", second.id, 1)
    third = versions.submit(back)
    assert third.in_force
    assert third.sha256 == first.sha256


def test_a_base_of_another_case_is_refused(versions: LabelVersions) -> None:
    other = versions.submit(handed_in("Many_00001", "ann", NO_BASE))
    with pytest.raises(InvalidInput, match="no label of the liver of this case"):
        versions.submit(handed_in("Many_00000", "ann", other.id))
    assert versions.versions("Many_00000") == []


def original_liver(created_at: datetime) -> Label:
    return Label(
        case_id="Many_00000",
        organ=ORGAN,
        source=LabelSource.ORIGINAL,
        path="cases/Many_00000/labels/liver/original-1.nii.gz",
        value=1,
        sha256="f" * 64,
        voxels=5,
        volume_ml=0.5,
        created_at=created_at,
    )


def test_a_revision_never_takes_the_place_of_an_original(
    catalog: Catalog, versions: LabelVersions, clock: Clock
) -> None:
    catalog.add_labels([original_liver(clock())])
    base = versions.in_force("Many_00000")[ORGAN].id
    revised = versions.submit(handed_in("Many_00000", "ann", base))
    assert not revised.in_force
    assert versions.in_force("Many_00000")[ORGAN].source is LabelSource.ORIGINAL


def test_two_revisions_of_an_original_are_a_conflict(
    catalog: Catalog, versions: LabelVersions, clock: Clock
) -> None:
    """The original stays in force, so the version in force never shows that somebody was first."""
    catalog.add_labels([original_liver(clock())])
    base = versions.in_force("Many_00000")[ORGAN].id
    assert versions.latest("Many_00000")[ORGAN].id == base
    first = versions.submit(handed_in("Many_00000", "ann", base, 1))
    with pytest.raises(StaleBase) as caught:
        versions.submit(handed_in("Many_00000", "bob", base, 2))
    assert caught.value.current == first
    assert caught.value.submitted.author == "bob"
    assert versions.latest("Many_00000") == {ORGAN: first}
    second = versions.submit(handed_in("Many_00000", "bob", first.id, 3))
    assert versions.latest("Many_00000") == {ORGAN: second}
    assert versions.in_force("Many_00000")[ORGAN].id == base


def test_a_slow_clock_does_not_make_a_new_label_old(versions: LabelVersions, clock: Clock) -> None:
    first = versions.submit(handed_in("Many_00000", "ann", NO_BASE, 1))
    clock.go(hours=-1)
    second = versions.submit(handed_in("Many_00000", "bob", first.id, 2))
    assert second.in_force
    assert second.created_at > first.created_at


def test_threads_that_hand_in_from_one_base_make_one_label(versions: LabelVersions) -> None:
    def submit(number: int) -> bool:
        try:
            versions.submit(handed_in("Many_00000", f"a{number}", NO_BASE, number))
        except StaleBase:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        accepted = list(pool.map(submit, range(1, 9)))
    assert sum(accepted) == 1
    found = versions.versions("Many_00000")
    assert len(found) == 8
    assert sum(version.in_force for version in found) == 1


def test_the_queue_is_drained_once_each_time(
    catalog: Catalog, queue: RevisionQueue, clock: Clock
) -> None:
    events = OutgoingEvents(catalog, clock=clock)
    assert not events.note_drained()
    while (task := queue.next(ANN)) is not None:
        assert not events.note_drained()
        queue.confirm(task.id, ANN, 1)
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(lambda _: events.note_drained(), range(4))) == 1
    queue.reopen(1, "rita", "look again")
    queue.skip(1, REX, "no")
    assert events.note_drained()
    first = events.take_due()
    assert first is not None
    assert (first.name, first.payload) == (QUEUE_DRAINED, {"tasks": {"confirmed": CASES}})


def test_an_event_is_tried_until_it_arrives(
    catalog: Catalog, queue: RevisionQueue, clock: Clock
) -> None:
    events = OutgoingEvents(catalog, clock=clock)
    while (task := queue.next(ANN)) is not None:
        queue.confirm(task.id, ANN, 1)
    events.note_drained()
    event = events.take_due()
    assert event is not None
    assert events.take_due() is None  # somebody is at it
    events.failed(event, "HTTP 503")
    assert events.take_due() is None  # not so soon
    clock.go(seconds=2)
    again = events.take_due()
    assert again is not None
    assert (again.key, again.attempts) == (event.key, 2)
    events.delivered(again)
    clock.go(days=1)
    assert events.take_due() is None


def test_time_spent_is_counted_by_annotator_and_day(
    catalog: Catalog, queue: RevisionQueue, clock: Clock
) -> None:
    for who, seconds in ((ANN, 60.0), (BOB, 30.0), (ANN, 15.0)):
        task = queue.next(who)
        assert task is not None
        queue.confirm(task.id, who, seconds)
        clock.go(hours=12)
    found = {one.annotator: one for one in ReviewStatistics(catalog).throughput()}
    assert (found["ann"].tasks, found["ann"].seconds) == (2, 75.0)
    assert [(day.day, day.seconds) for day in found["ann"].by_day] == [
        ("2026-03-02", 60.0),
        ("2026-03-03", 15.0),
    ]
    task = queue.next(ANN)
    assert task is not None
    with pytest.raises(InvalidInput, match="time spent"):
        queue.confirm(task.id, ANN, float("nan"))


def test_what_is_refused_leaves_no_trace(queue: RevisionQueue) -> None:
    task = queue.next(ANN)
    assert task is not None
    before = queue.history(task.id)
    for refused in (
        lambda: queue.confirm(task.id, BOB, 1),
        lambda: queue.revise(task.id, ANN, 1, {ORGAN: "77"}),
        lambda: queue.skip(task.id, ANN, ""),
        lambda: queue.confirm(task.id, ANN, -1),
    ):
        with pytest.raises(AtlasError):
            refused()
    assert queue.history(task.id) == before
    assert queue.task(task.id).state is TaskState.LEASED


@pytest.mark.parametrize(
    "change", ["UPDATE audit_log SET who = 'nobody'", "DELETE FROM audit_log WHERE id = 1"]
)
def test_the_audit_log_only_grows(catalog: Catalog, queue: RevisionQueue, change: str) -> None:
    before = AuditLog(catalog).page(0, 500)
    assert before[0] > 0
    with pytest.raises(sa.exc.DBAPIError, match="only grows"), catalog.engine.begin() as direct:
        direct.execute(sa.text(change))
    assert AuditLog(catalog).page(0, 500) == before
