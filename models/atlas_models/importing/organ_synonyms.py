"""Names by which datasets and models call the organs of an atlas. Free of torch."""

from __future__ import annotations

from atlas_core.organs import OrganScheme


def organ_called(name: str, scheme: OrganScheme) -> str | None:
    """The organ of `scheme` that `name` means in a model's label list; None: none of them, or left
    and right together, which are no single organ.

    >>> from atlas_core.organs import read_scheme
    >>> scheme = read_scheme("abdomen_atlas_1_0")
    >>> organ_called("Right Kidney", scheme), organ_called("kidneys", scheme)
    ('kidney_right', None)
    """
    found = scheme.called(name)
    return found[0].name if len(found) == 1 else None
