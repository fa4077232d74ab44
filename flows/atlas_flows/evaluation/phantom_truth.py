"""True errors of scored phantoms: reads true masks, matches them to cases, compares."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from atlas_core.catalog import Catalog
from atlas_core.errors import AtlasError, CorruptFile, NotFound
from atlas_core.imaging import content_sha256, read_header, read_label, read_volume
from atlas_core.organs import OrganScheme
from atlas_core.phantoms import CT_NAME, INDEX_NAME, TRUTH_NAME
from atlas_core.records import Case, RankBy, RankedCase, Reading
from atlas_core.store import CaseStore
from numpy.typing import NDArray

from atlas_flows.evaluation.ranking_quality import ORDINARY, CaseError, dice_by_organ

TRUTH_FOLDER = "truth"
"""Where `atlasloop phantoms` puts the truth beside CTs that are to be predicted."""


@dataclass(frozen=True)
class TruthFiles:
    """One phantom of a truth folder.

    Attributes:
        name: of its folder.
        kind: "ordinary", or how it is hard.
        ct: its CT if that lies in the folder too; what identifies it beyond doubt.
        combined: label map of all organs, or None.
        masks: folder of one mask per organ, or None.
    """

    name: str
    kind: str
    ct: Path | None
    combined: Path | None
    masks: Path | None


def truth_files(folder: Path) -> list[TruthFiles]:
    """The phantoms that `folder` lists, with the files that were found of each.

    Raises:
        NotFound: no list, or no truth for any case.
        CorruptFile: the list is not one.
    """
    found = [_true_case(folder, *entry) for entry in _listed(folder)]
    with_truth = [case for case in found if case.combined or case.masks]
    if not with_truth:
        raise NotFound(
            "the folder holds no true masks",
            expected=f"<case>/{TRUTH_NAME} or <case>/segmentations",
            remedy="name the folder that `atlasloop phantoms` wrote, or its truth folder",
        )
    return with_truth


def case_errors(
    folder: Path, catalog: Catalog, store: CaseStore, reading: Reading
) -> Iterator[CaseError]:
    """True error of every scored case whose truth lies in `folder`.

    Compared are the organs that count for the attention size: those without an original label.

    Raises:
        NotFound: no truth, or no case was scored.
        AtlasError: a file cannot be read.
    """
    ensemble = catalog.latest_ensemble(reading)
    if ensemble is None:
        raise NotFound("no case is scored", remedy="run `atlasloop score` first")
    ranked = {row.case_id: row for row in catalog.ranking(reading, ensemble, by=RankBy.SIZE)}
    for true_case, case in matched_cases(folder, catalog, ranked):
        path = store.pseudo_label_path(case.id, reading, ensemble)
        yield _error(true_case, case, ranked[case.id], path, catalog.organ_scheme())


def matched_cases(
    folder: Path, catalog: Catalog, among: Container[str]
) -> Iterator[tuple[TruthFiles, Case]]:
    """The cases of the catalog whose truth lies in `folder`, in its order; only ids `among`.

    Raises:
        NotFound: no truth.
        CorruptFile: a CT or a list of the folder cannot be read.
    """
    cases = [case for case in catalog.cases() if case.id in among]
    by_name = {name: case for case in cases for name in _names(case)}
    for true_case in truth_files(folder):
        case = _match(true_case, catalog, by_name)
        if case is not None and case.id in among:
            yield true_case, case


def kinds_of_cases(folder: Path, catalog: Catalog) -> dict[str, str]:
    """Kind of every case of the catalog that came from the phantoms in `folder`, by case id."""
    by_name = {name: case for case in catalog.cases() for name in _names(case)}
    listed = [_true_case(folder, *entry) for entry in _listed(folder)]
    found = [(_match(phantom, catalog, by_name), phantom.kind) for phantom in listed]
    return {case.id: kind for case, kind in found if case is not None}


def _listed(folder: Path) -> list[tuple[str, str, str]]:
    """Name, kind and dataset of every phantom that `folder` lists."""
    try:
        index = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
        return [(str(e["case"]), str(e["kind"]), str(e["dataset"])) for e in index["cases"]]
    except FileNotFoundError:
        names = _folders_with_masks(folder)
        if names:
            return [(name, ORDINARY, "") for name in names]
        raise NotFound(
            f"the folder holds no {INDEX_NAME}, and no <case>/{TRUTH_NAME}",
            remedy="name a folder of `atlasloop phantoms`, or one in the layout of AbdomenAtlas",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{INDEX_NAME} is no list of phantoms", got=repr(error)) from None


def _folders_with_masks(folder: Path) -> list[str]:
    """Names of the cases of a folder in the layout of AbdomenAtlas: a subfolder for each case."""
    found = [*folder.glob(f"*/{TRUTH_NAME}"), *folder.glob("*/segmentations")]
    return sorted({path.parent.name for path in found})


def _true_case(folder: Path, name: str, kind: str, dataset: str) -> TruthFiles:
    places = [folder / dataset / name, folder / TRUTH_FOLDER / name]
    return TruthFiles(
        name=name,
        kind=kind,
        ct=_first(place / CT_NAME for place in places),
        combined=_first(place / TRUTH_NAME for place in places),
        masks=_first(place / "segmentations" for place in places),
    )


def _first(paths: Iterator[Path]) -> Path | None:
    return next((path for path in paths if path.exists()), None)


def _names(case: Case) -> set[str]:
    """Names by which a case may be called in a truth folder: parts of the path it came from."""
    path = PurePosixPath(case.source.replace("\\", "/"))
    return {*path.parts, path.name.removesuffix(".gz").removesuffix(".nii")}


def _match(true_case: TruthFiles, catalog: Catalog, by_name: Mapping[str, Case]) -> Case | None:
    """The case in the catalog: by content where the CT is at hand, else by name and grid."""
    if true_case.ct is not None:
        return catalog.find_case_by_content(content_sha256(read_volume(true_case.ct)))
    case = by_name.get(true_case.name)
    if case is None or true_case.combined is None:
        return case
    # Phantoms of different seeds share names, but hardly ever a grid.
    return case if case.geometry.same_grid(read_header(true_case.combined).geometry) else None


def _error(
    true_case: TruthFiles, case: Case, ranked: RankedCase, pseudo: Path, atlas: OrganScheme
) -> CaseError:
    if not ranked.organs:
        return CaseError(ranked=ranked, kind=true_case.kind, dice={})
    try:
        predicted = read_label(pseudo)
        scheme = atlas.select([size.organ for size in ranked.organs])
        truth = truth_masks(true_case, case, scheme)
    except AtlasError as error:
        raise error.with_case(case.id) from None
    return CaseError(
        ranked=ranked,
        kind=true_case.kind,
        dice=dice_by_organ(predicted.voxels, truth, {organ.name: organ.label for organ in scheme}),
        absent=frozenset(o.name for o in scheme if o.name not in truth or not truth[o.name].any()),
    )


def truth_masks(
    true_case: TruthFiles, case: Case, scheme: OrganScheme
) -> dict[str, NDArray[np.bool_]]:
    """Mask per organ of `scheme` on the grid of `case`; organs without a file are absent."""
    if true_case.combined is not None:
        combined = _on_grid(true_case.combined, case)
        return {organ.name: combined == organ.label for organ in scheme}
    masks = true_case.masks
    if masks is None:
        raise NotFound("no true masks", case=case.id)
    files = {organ.name: masks / f"{organ.name}.nii.gz" for organ in scheme}
    return {name: _on_grid(path, case) > 0 for name, path in files.items() if path.exists()}


def _on_grid(path: Path, case: Case) -> NDArray[Any]:
    volume = read_label(path)
    case.geometry.require_same_grid(volume.geometry, this="CT", that="truth", case=case.id)
    return volume.voxels
