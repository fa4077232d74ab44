"""The report page: pictures as in a reading room, one file without outside requests."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from atlas_core.catalog import Catalog, record_check
from atlas_core.errors import NotFound
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import Volume, content_sha256, pictures, read_header, write_volume
from atlas_core.imaging.pictures import Cut, Layer, Plane, cut_case, most_attended, picture
from atlas_core.model_spec import ModelRef, ModelSpec, ensemble_key
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.records import (
    Case,
    CaseWarning,
    CheckedPart,
    Dataset,
    Label,
    LabelSource,
    Model,
    OrganScore,
    Reading,
    Score,
    WarningKind,
)
from atlas_core.store import CaseStore
from atlas_flows.reports import ReportScope, RunFacts, StepTime, build_report
from numpy.typing import NDArray

REFS = tuple(
    ModelRef(name=name, version=0, sha256=digit * 64)
    for name, digit in (("nnunet", "a"), ("swin_unetr", "b"), ("unet", "c"))
)
KEY = ensemble_key(REFS)

# Canonical grid of all tests here: x, y, z with three different lengths and spacings.
SHAPE = (20, 14, 9)
SPACING = (2.0, 3.0, 5.0)
RIGHT_FRONT_TOP = (slice(15, 19), slice(10, 13), slice(6, 8))
"""A block on the patient's right, in front, near the head, in canonical indices."""


def _affine(axis_codes: str) -> NDArray[np.float64]:
    """Affine of a file in `axis_codes` whose canonical grid has `SPACING` and origin 0."""
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1.0
    for axis, letter in enumerate(axis_codes):
        world = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[letter]
        back = letter in "LPI"
        matrix[world, axis] = -SPACING[world] if back else SPACING[world]
        if back:
            matrix[world, 3] = SPACING[world] * (SHAPE[world] - 1)
    return matrix


def _write(path: Path, canonical: NDArray[np.generic], codes: str, slope: float = 1.0) -> None:
    file_shape = tuple(
        SHAPE[{"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[letter]] for letter in codes
    )
    geometry = VolumeGeometry.from_array(file_shape, _affine(codes))
    voxels = np.asfortranarray(geometry.axis_map.from_canonical(canonical))
    write_volume(path, voxels, geometry, slope=slope)


def _volumes(folder: Path, codes: str) -> tuple[Path, Path, Path]:
    """CT, pseudo label and attention with the block in the same place."""
    ct = np.full(SHAPE, -1000, np.int16)
    labels = np.zeros(SHAPE, np.uint8)
    attention = np.zeros(SHAPE, np.uint8)
    ct[RIGHT_FRONT_TOP] = 200
    labels[RIGHT_FRONT_TOP] = ABDOMEN_ATLAS["liver"].label
    attention[RIGHT_FRONT_TOP] = 136
    paths = tuple(folder / f"{name}.nii.gz" for name in ("ct", "labels", "attention"))
    for path, voxels, slope in zip(paths, (ct, labels, attention), (1, 1, 1 / 136), strict=True):
        _write(path, voxels, codes, slope)
    return paths  # type: ignore[return-value]


def _cuts(folder: Path, codes: str) -> dict[Plane, Cut]:
    ct, labels, attention = _volumes(folder, codes)
    return {cut.plane: cut for cut in cut_case(ct, labels, [attention])}


def _centre(plane: NDArray[np.generic]) -> tuple[float, float]:
    """Centre of what is not zero, as shares of height and width."""
    rows, columns = np.nonzero(plane)
    return rows.mean() / plane.shape[0], columns.mean() / plane.shape[1]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "IPL", "ASR"])
def test_the_patients_right_is_on_the_left(tmp_path: Path, codes: str) -> None:
    cuts = _cuts(tmp_path, codes)
    for layer in ("labels", "attention"):
        row, column = _centre(getattr(cuts[Plane.AXIAL], layer))
        assert row < 0.5  # anterior is up
        assert column < 0.5  # right is on the left
        row, column = _centre(getattr(cuts[Plane.CORONAL], layer))
        assert row < 0.5  # the head is up
        assert column < 0.5
        row, column = _centre(getattr(cuts[Plane.SAGITTAL], layer))
        assert row < 0.5
        assert column < 0.5  # anterior is on the left
    assert Plane.AXIAL.letters == ("A", "L", "P", "R")


def test_pictures_do_not_depend_on_the_files_axis_order(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = _cuts(tmp_path / "a", "RAS"), _cuts(tmp_path / "b", "IPL")
    for plane in Plane:
        for layer in Layer:
            a = np.asarray(picture(one[plane], layer, ABDOMEN_ATLAS))
            b = np.asarray(picture(other[plane], layer, ABDOMEN_ATLAS))
            assert np.array_equal(a, b)


def test_pixels_are_square(tmp_path: Path) -> None:
    for plane, cut in _cuts(tmp_path, "RAS").items():
        height_mm, width_mm = cut.size_mm
        width, height = picture(cut, Layer.CT, ABDOMEN_ATLAS).size
        assert max(width, height) == pictures.PICTURE_PX
        assert width / height == pytest.approx(width_mm / height_mm, rel=0.02), plane
    # 20 × 2 mm across, 14 × 3 mm deep.
    assert cut.plane is Plane.SAGITTAL
    assert cut.size_mm == (pytest.approx(45.0), pytest.approx(42.0))


def test_the_cut_goes_where_most_attention_is(tmp_path: Path) -> None:
    cuts = _cuts(tmp_path, "LPS")
    x, y, z = RIGHT_FRONT_TOP
    assert x.start <= cuts[Plane.SAGITTAL].index < x.stop
    assert y.start <= cuts[Plane.CORONAL].index < y.stop
    assert z.start <= cuts[Plane.AXIAL].index < z.stop
    assert cuts[Plane.AXIAL].attention.max() == pytest.approx(1.0)


def test_without_attention_the_cut_goes_through_the_middle(tmp_path: Path) -> None:
    _write(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.uint8), "RAS")
    geometry = read_header(tmp_path / "a.nii.gz").geometry.canonical()
    at = most_attended([tmp_path / "a.nii.gz"], geometry)
    assert at == most_attended([], geometry)
    assert [at[plane] for plane in (Plane.SAGITTAL, Plane.CORONAL, Plane.AXIAL)] == [10, 7, 4]


def test_many_slabs_give_the_same_cut_as_the_whole_volume(tmp_path: Path) -> None:
    shape = (6, 5, 2 * pictures.SLAB + 7)
    voxels = np.random.default_rng(0).integers(0, 200, shape).astype(np.uint8)
    geometry = VolumeGeometry.from_array(shape, np.diag([2.0, 3.0, 5.0, 1.0]))
    path = tmp_path / "v.nii.gz"
    write_volume(path, voxels, geometry)
    whole = voxels.astype(np.float64)
    for cut in cut_case(path, path, [path, path]):
        sums = whole.sum(axis=tuple(axis for axis in range(3) if axis != cut.plane.axis))
        assert cut.index == np.argmax(sums)
        plane = np.take(whole, cut.index, axis=cut.plane.axis).T[::-1, ::-1]
        assert np.array_equal(cut.ct, plane)
        assert np.array_equal(cut.attention, 2 * plane)


def test_layers_show_what_they_say(tmp_path: Path) -> None:
    cut = _cuts(tmp_path, "RAS")[Plane.AXIAL]
    grey = np.asarray(picture(cut, Layer.CT, ABDOMEN_ATLAS)).astype(int)
    assert np.array_equal(grey[..., 0], grey[..., 2])
    for layer in (Layer.LABELS, Layer.ATTENTION):
        shown = np.asarray(picture(cut, layer, ABDOMEN_ATLAS)).astype(int)
        coloured = np.ptp(shown, axis=-1) > 20
        row, column = _centre(coloured)
        assert row < 0.5
        assert column < 0.5


def _catalog(
    tmp_path: Path, cases: int, *, original: bool = False, preset: str | None = "phantoms"
) -> tuple[Catalog, CaseStore]:
    catalog = Catalog.open(f"sqlite:///{tmp_path / 'catalog.sqlite'}")
    store = CaseStore(tmp_path / "store")
    catalog.add_dataset(Dataset(name="d", title="<script>alert(1)</script>", preset=preset))
    for number in range(cases):
        _add_case(catalog, store, tmp_path, number, original=original)
    return catalog, store


def _add_case(
    catalog: Catalog, store: CaseStore, folder: Path, number: int, *, original: bool
) -> None:
    ct_path, label_path, attention_path = _volumes(folder, ("RAS", "LPS", "IPL")[number % 3])
    geometry = read_header(ct_path).geometry
    ct = np.zeros(geometry.shape, np.int16)
    ct[0, 0, 0] = number + 1
    content = content_sha256(Volume(ct, geometry))
    case_id = f"d_{content[:12]}"
    store.ct_path(case_id).parent.mkdir(parents=True)
    store.ct_path(case_id).write_bytes(ct_path.read_bytes())
    now = datetime.now(UTC)
    label = Label(
        case_id=case_id,
        organ="aorta",
        source=LabelSource.ORIGINAL,
        path="x.nii.gz",
        value=1,
        sha256="1" * 64,
        voxels=1,
        volume_ml=1,
        created_at=now,
    )
    catalog.add_case(
        Case(
            id=case_id,
            dataset="d",
            content_sha256=content,
            shape=geometry.shape,
            affine=geometry.affine,
            imported_at=now,
        ),
        [label] if original else [],
    )
    with store.new_prediction(case_id, Reading.PAPER, KEY) as draft:
        draft.pseudo_label_path.write_bytes(label_path.read_bytes())
        for organ in ABDOMEN_ATLAS.names:
            draft.attention_path(organ).write_bytes(attention_path.read_bytes())
        draft.result_path.write_text("{}")
    sizes = tuple(
        OrganScore(
            organ=organ,
            attention_voxels=100.0 * (number + 1),
            attention_ml=3.0 * (number + 1),
            pseudo_label_ml=1.0,
            disagreement=0.1 * (number + 1),
            expected_ml=1.0,
            attended_ml=1.0 * (number + 1),
        )
        for organ in ABDOMEN_ATLAS.names
    )
    catalog.record_score(
        Score(
            case_id=case_id,
            reading=Reading.PAPER,
            ensemble=KEY,
            models=REFS,
            organs=sizes,
            seconds=1.0,
            created_at=now,
        )
    )


def test_the_page_stands_alone(tmp_path: Path) -> None:
    catalog, store = _catalog(tmp_path, 4)
    with catalog:
        page = build_report(
            catalog,
            store,
            ReportScope(top=2),
            RunFacts(
                steps=(StepTime("score", 1.5, "four cases"),),
                notes=("These are phantoms.",),
                refused=(("b<ad>.nii.gz", "4D"),),
            ),
        )
    assert not re.search(r"""(src|href|url\()\s*=?\s*["']?\s*(https?:)?//""", page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "b&lt;ad&gt;.nii.gz" in page
    # Two cases, three planes, three layers.
    assert page.count("data:image/webp;base64,") == 18
    assert "These are phantoms." in page
    assert "prefers-color-scheme: dark" in page
    for ref in REFS:
        assert ref.sha256[:16] in page


def _register(catalog: Catalog, source: str) -> None:
    for ref in REFS:
        spec = ModelSpec(
            name=ref.name,
            version=ref.version,
            architecture=ref.name,
            organs=("liver",),
            spacing_mm=(3.0, 3.0, 3.0),
            patch=(64, 64, 48),
            hu_window=(-175.0, 250.0),
            sha256=ref.sha256,
        )
        provenance = {"data": json.dumps({"source": source})}
        catalog.register_model(
            Model(spec=spec, provenance=provenance, created_at=datetime.now(UTC))
        )


@pytest.mark.parametrize("preset", ["phantoms", None])
def test_what_a_reader_must_know_is_said(tmp_path: Path, preset: str | None) -> None:
    catalog, store = _catalog(tmp_path, 1, preset=preset)
    with catalog:
        _register(catalog, "phantoms of atlas_core.phantoms")
        page = build_report(catalog, store, ReportScope(top=0))
    text = " ".join(page.split())
    assert "trained for an hour on generated CTs" in text
    assert ("phantoms, not patients" in text) == (preset == "phantoms")
    assert ("On real CTs the labels of these models are rough" in text) == (preset is None)
    assert "64 × 64 × 48" in text


def test_trained_models_need_no_apology(tmp_path: Path) -> None:
    catalog, store = _catalog(tmp_path, 1, preset=None)
    with catalog:
        _register(catalog, "AbdomenAtlas 1.0")
        page = build_report(catalog, store, ReportScope(top=0))
    assert 'role="note"' not in page


def test_every_picture_says_what_it_shows(tmp_path: Path) -> None:
    catalog, store = _catalog(tmp_path, 1)
    with catalog:
        page = build_report(catalog, store, ReportScope(top=1))
    texts = re.findall(r'alt="([^"]+)"', page)
    assert len(set(texts)) == 9
    assert all("slice" in text for text in texts)


def test_rows_come_by_rank_and_organs_with_original_labels_are_marked(tmp_path: Path) -> None:
    catalog, store = _catalog(tmp_path, 3, original=True)
    with catalog:
        ranking = catalog.ranking(Reading.PAPER)
        page = build_report(catalog, store, ReportScope(top=1))
    places = [page.index(case.case_id) for case in ranking]
    assert places == sorted(places)
    assert page.count(">orig.<") == 0  # nobody's aorta counts, so there is no column for it
    assert "Left out, with an original label: aorta." in page


def test_warnings_are_a_column_where_there_are_any(tmp_path: Path) -> None:
    catalog, store = _catalog(tmp_path, 2)
    with catalog:
        assert ">warnings<" not in build_report(catalog, store, ReportScope(top=1))
        last = catalog.case(catalog.ranking(Reading.PAPER)[-1].case_id)
        said = CaseWarning(kind=WarningKind.SCAN, text="<b>sform and qform disagree</b>")
        record_check(catalog, last.id, CheckedPart.SCAN, last.content_sha256, [said])
        page = build_report(catalog, store, ReportScope(top=1))
    assert page.count(">warnings<") == 1
    assert page.count("&lt;b&gt;sform and qform disagree&lt;/b&gt;") == 1  # in its own row


def test_nothing_scored_is_said(tmp_path: Path) -> None:
    catalog, store = _catalog(tmp_path, 0)
    with catalog, pytest.raises(NotFound, match="atlasloop score"):
        build_report(catalog, store, ReportScope())
