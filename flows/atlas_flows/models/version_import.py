"""Models from elsewhere as versions that can be promoted, for the command and the form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_core.catalog import Catalog, next_version
from atlas_core.errors import InvalidInput

from atlas_flows.models.compatibility import require_compatible
from atlas_flows.models.store import ModelStore

if TYPE_CHECKING:
    from atlas_core.model_spec import Resampling, Windows
    from atlas_core.organs import OrganScheme
    from atlas_models.importing import ImportedModel


@dataclass(frozen=True)
class VersionImport:
    """What to import: `nnunet`, or `weights` or `onnx` with its `config`.

    Attributes:
        name: in Triton, one per architecture.
        version: t of M_t; None: the next one of that name.
        folds: "all", or numbers separated by commas.
        configuration, checkpoint, orientation, labels, left_out, preset: of an nnU-Net; see
            `NnunetChoices`.
        overlap, mirrored, resampling, windows: how it is served.
        organs: which, in this order; None: all of the atlas that the model knows.
    """

    name: str
    nnunet: Path | None = None
    weights: Path | None = None
    onnx: Path | None = None
    config: Path | None = None
    version: int | None = None
    folds: str = "all"
    configuration: str | None = None
    checkpoint: str | None = None
    orientation: str | None = None
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    preset: str | None = None
    overlap: float | None = None
    mirrored: bool = False
    resampling: Resampling = "linear"
    windows: Windows = "body"
    organs: tuple[str, ...] | None = None

    @property
    def source(self) -> Path:
        """The folder or file.

        Raises:
            InvalidInput: none, several, or one without its description.
        """
        given = [one for one in (self.nnunet, self.weights, self.onnx) if one is not None]
        if len(given) != 1 or (self.nnunet is None) != (self.config is not None):
            raise InvalidInput(
                "say what to import",
                expected="the folder of an nnU-Net; or weights or an ONNX file, with config",
            )
        return given[0]

    @property
    def serving(self) -> dict[str, Any]:
        """What was asked for beyond the usual."""
        usual = {"overlap": None, "mirrored": False, "resampling": "linear", "windows": "body"}
        return {name: getattr(self, name) for name in usual if getattr(self, name) != usual[name]}


def import_version(
    order: VersionImport, catalog: Catalog, store: ModelStore, *, on_note: Callable[[str], None]
) -> ImportedModel:
    """Bring it into the store and the catalog. Nothing in its files is run as code.

    Args:
        on_note: told what deserves a look.

    Raises:
        InvalidInput: no such combination, or the model does not know all the organs asked for.
        AtlasError: see `atlas_models.importing`.
    """
    source = order.source
    with store.incoming() as folder:
        atlas = catalog.organ_scheme()
        scheme = atlas if order.organs is None else atlas.select(order.organs)
        version = order.version
        if version is None:
            version = next_version(catalog, order.name, store.versions(order.name))
        target = Path(folder) / order.name
        imported = _import(order, version, target, scheme)
        if order.organs is not None:
            imported = imported.chosen_from(atlas)
        spec = imported.spec
        if order.organs is not None and spec.organs != scheme.names:
            raise InvalidInput(
                "the model does not know all these organs",
                expected=",".join(order.organs),
                got=",".join(spec.organs),
            )
        for organ in require_compatible(spec, atlas):
            on_note(f"{organ} is no organ of this atlas; it takes no part")
        provenance = _origin(source, order.config) | imported.provenance
        store.add(target, catalog, provenance=provenance)
    return imported


def _import(order: VersionImport, version: int, target: Path, scheme: OrganScheme) -> ImportedModel:
    # Here: it needs torch, which few machines have.
    from atlas_models.importing import NnunetChoices, import_monai, import_nnunet, import_onnx

    if order.nnunet is not None:
        choices = NnunetChoices(
            name=order.name,
            version=version,
            configuration=order.configuration,
            folds="all" if order.folds == "all" else tuple(order.folds.split(",")),
            checkpoint=order.checkpoint,
            orientation=order.orientation,
            labels=order.labels,
            left_out=order.left_out,
            preset=order.preset,
            serving=order.serving,
        )
        return import_nnunet(order.nnunet, target, choices, scheme)
    assert order.config is not None
    make = import_onnx if order.weights is None else import_monai
    return make(
        order.source,
        order.config,
        target,
        name=order.name,
        version=version,
        scheme=scheme,
        serving=order.serving,
    )


def _origin(source: Path, config: Path | None) -> dict[str, str]:
    """Names and checksums of what was imported; no folders, which may hold names of people."""
    files = [source] if source.is_file() else sorted(source.glob("*.json"))
    origin = {
        f"sha256 of {path.name}": sha256(path.read_bytes()).hexdigest()
        for path in (*files, *([config] if config else []))
    }
    return {"imported_from": source.name, **origin}
