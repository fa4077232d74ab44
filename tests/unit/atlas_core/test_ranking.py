"""The priority list."""

from __future__ import annotations

import random

import pytest
from atlas_core.errors import Conflict
from atlas_core.ranking import EMPTY_ML, CaseSizes, rank, weight
from atlas_core.records import OrganScore, RankBy


def sizes(**ml: float) -> tuple[OrganScore, ...]:
    return tuple(
        OrganScore(organ=organ, attention_voxels=10 * v, attention_ml=v, pseudo_label_ml=1.0)
        for organ, v in ml.items()
    )


def test_more_attention_comes_first() -> None:
    cases = [
        CaseSizes("a", "d", sizes(liver=1.0, spleen=1.0)),
        CaseSizes("b", "d", sizes(liver=3.0)),
    ]
    assert [(row.rank, row.case_id, row.attention_ml) for row in rank(cases, RankBy.SIZE)] == [
        (1, "b", 3.0),
        (2, "a", 2.0),
    ]


def test_cases_compare_by_volume_not_by_voxels() -> None:
    thick = OrganScore(organ="liver", attention_voxels=10, attention_ml=2.0, pseudo_label_ml=0)
    thin = OrganScore(organ="liver", attention_voxels=1000, attention_ml=1.0, pseudo_label_ml=0)
    rows = rank([CaseSizes("thin", "d", (thin,)), CaseSizes("thick", "d", (thick,))], RankBy.SIZE)
    assert [row.case_id for row in rows] == ["thick", "thin"]


def test_organs_with_an_original_label_do_not_count_but_are_named() -> None:
    case = CaseSizes("a", "d", sizes(liver=5.0, spleen=1.0), {"liver", "duodenum"})
    (row,) = rank([case], RankBy.SIZE)
    assert row.attention_ml == 1.0
    assert row.attention_voxels == 10.0
    assert [organ.organ for organ in row.organs] == ["spleen"]
    assert row.left_out == ("liver",)


def test_the_order_of_cases_and_organs_does_not_matter() -> None:
    names = [f"{n:02}" for n in range(30)]
    values = {name: [0.1 * (n % 7), 0.2, 0.3] for n, name in enumerate(names)}

    def case(name: str, shuffle: random.Random) -> CaseSizes:
        organs = list(zip(("liver", "spleen", "aorta"), values[name], strict=True))
        shuffle.shuffle(organs)
        return CaseSizes(name, "d", sizes(**dict(organs)))

    lists = []
    for seed in range(3):
        shuffle = random.Random(seed)
        shuffle.shuffle(names)
        lists.append(rank([case(name, shuffle) for name in names], RankBy.SIZE))
    assert lists[0] == lists[1] == lists[2]
    ties = [row.case_id for row in lists[0] if row.attention_ml == lists[0][0].attention_ml]
    assert len(ties) > 1
    assert ties == sorted(ties)


def test_nothing_to_rank() -> None:
    assert rank([]) == []
    (row,) = rank([CaseSizes("a", "d", sizes(liver=1.0), {"liver"})])
    assert (row.attention_ml, row.organs) == (0.0, ())


def organ(name: str, attention: float, volume: float) -> OrganScore:
    return OrganScore(
        organ=name, attention_voxels=attention, attention_ml=attention, pseudo_label_ml=volume
    )


def test_relative_attention_puts_the_small_organ_before_the_large_patient() -> None:
    large = CaseSizes("large", "d", (organ("liver", 200, 2000), organ("spleen", 30, 300)))
    wrong = CaseSizes("wrong", "d", (organ("liver", 100, 1000), organ("spleen", 60, 100)))
    assert [row.case_id for row in rank([large, wrong], RankBy.SIZE)] == ["large", "wrong"]
    by_share = rank([large, wrong], RankBy.RELATIVE)
    assert [(row.rank, row.case_id) for row in by_share] == [(1, "wrong"), (2, "large")]
    assert [row.relative_attention for row in by_share] == [0.35, 0.1]


def test_relative_attention_does_not_depend_on_the_size_of_the_patient() -> None:
    organs = [("liver", 90.0, 1500.0), ("spleen", 20.0, 200.0)]
    cases = [
        CaseSizes(f"x{k}", "d", tuple(organ(name, k * a, k * v) for name, a, v in organs))
        for k in (1, 2, 3)
    ]
    rows = rank(cases, RankBy.RELATIVE)
    assert len({round(row.relative_attention, 12) for row in rows}) == 1


def test_an_organ_that_no_model_found_counts_by_its_attention() -> None:
    (row,) = rank([CaseSizes("a", "d", (organ("gall_bladder", 4.0, 0.0),))], RankBy.RELATIVE)
    assert row.relative_attention == 4.0


def differs(name: str, disagreement: float, *, ml: float = 100.0) -> OrganScore:
    return OrganScore(
        organ=name,
        attention_voxels=0,
        attention_ml=0,
        pseudo_label_ml=ml,
        disagreement=disagreement,
        expected_ml=ml,
        attended_ml=0,
    )


def test_disagreement_puts_first_what_the_models_see_differently() -> None:
    agreed = CaseSizes("agreed", "d", (differs("liver", 0.1), differs("spleen", 0.1)))
    apart = CaseSizes("apart", "d", (differs("liver", 0.1), differs("spleen", 0.9)))
    rows = rank([agreed, apart])
    assert [(row.case_id, row.disagreement) for row in rows] == [("apart", 0.5), ("agreed", 0.1)]


def test_disagreement_counts_neither_original_labels_nor_organs_that_nobody_sees() -> None:
    organs = (
        differs("liver", 0.9),
        differs("spleen", 0.2),
        differs("gall_bladder", 0.0, ml=EMPTY_ML / 2),
    )
    (row,) = rank([CaseSizes("a", "d", organs, {"liver"})])
    assert row.disagreement == 0.2


@pytest.mark.parametrize("by", [RankBy.DISAGREEMENT, RankBy.ATTENDED])
def test_scores_without_what_a_list_is_sorted_by_are_not_mixed_in(by: RankBy) -> None:
    old = CaseSizes("old", "d", sizes(liver=1.0))
    new = CaseSizes("new", "d", (differs("liver", 0.5),))
    with pytest.raises(Conflict, match="scored 1 of 2 cases") as refused:
        rank([old, new], by)
    assert refused.value.case == "old"
    assert "atlasloop score --force" in str(refused.value)
    assert [row.by(by) is None for row in rank([old, new], RankBy.SIZE)] == [True, False]


def test_a_score_lacks_nothing_where_only_original_labels_lack_it() -> None:
    (row,) = rank([CaseSizes("a", "d", (*sizes(liver=9.0), differs("spleen", 0.3)), {"liver"})])
    assert row.disagreement == 0.3


def test_the_floor_puts_wrong_volume_before_a_large_surface() -> None:
    surface = organ("liver", 900, 2000).model_copy(update={"attended_ml": 10.0})
    wrong = organ("liver", 300, 1000).model_copy(update={"attended_ml": 80.0})
    cases = [CaseSizes("surface", "d", (surface,)), CaseSizes("wrong", "d", (wrong,))]
    assert [row.case_id for row in rank(cases, RankBy.SIZE)] == ["surface", "wrong"]
    by_floor = rank(cases, RankBy.ATTENDED)
    assert [(row.case_id, row.attended_ml) for row in by_floor] == [
        ("wrong", 80.0),
        ("surface", 10.0),
    ]


@pytest.mark.parametrize(
    ("by", "first"),
    [
        (RankBy.DISAGREEMENT, "spleen"),
        (RankBy.SIZE, "liver"),
        (RankBy.ATTENDED, "aorta"),
        (RankBy.RELATIVE, "gall_bladder"),
    ],
)
def test_the_organs_that_drive_a_case_come_first(by: RankBy, first: str) -> None:
    def one(name: str, attention: float, attended: float, label: float, apart: float) -> OrganScore:
        return OrganScore(
            organ=name,
            attention_voxels=0,
            attention_ml=attention,
            attended_ml=attended,
            pseudo_label_ml=label,
            expected_ml=label,
            disagreement=apart,
        )

    organs = (
        one("liver", 90, 1, 1500, 0.1),
        one("spleen", 10, 2, 200, 0.6),
        one("aorta", 20, 9, 100, 0.2),
        # Not there, all models agree: it drives no list by disagreement, whatever their specks do.
        one("gall_bladder", 5, 0, 0.1, 1.0),
    )
    (row,) = rank([CaseSizes("a", "d", organs)], by)
    assert row.organs[0].organ == first
    total = sum(weight(organ, by) for organ in row.organs)
    counted = {RankBy.DISAGREEMENT: 3, RankBy.RELATIVE: 4}.get(by, 1)
    assert row.by(by) == pytest.approx(total / counted)
