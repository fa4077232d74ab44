"""Which of our organs the labels of an nnU-Net's ``dataset.json`` are, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atlas_core.errors import InvalidInput
from atlas_core.importing import (
    is_lesion,
    open_lesions,
    preset,
    require_answers,
    without_lesion,
)
from atlas_core.organs import OrganScheme

from atlas_models.exported_network import Head
from atlas_models.importing.imported_model import NO_ORGAN
from atlas_models.importing.nnunet_choices import NnunetChoices
from atlas_models.importing.organ_synonyms import organ_called

BACKGROUND = "background"
IGNORE = "ignore"


@dataclass(frozen=True)
class NnunetLabels:
    """The labels of a dataset, as organs.

    Attributes:
        organs: that the network knows, in the scheme's order.
        head: reads them out of the network's channels.
        outputs: number of those channels.
        values: organ → the value that stands for it in a label map of the dataset.
        left_out: label → why it is no organ of ours.
    """

    organs: tuple[str, ...]
    head: Head
    outputs: int
    values: Mapping[str, int]
    left_out: Mapping[str, str]


def read_labels(
    dataset: Mapping[str, Any], choices: NnunetChoices, scheme: OrganScheme, case: str
) -> NnunetLabels:
    """What the labels of a dataset mean.

    Raises:
        InvalidInput: no label is an organ of ours, a lesion of which nothing says whether its organ
            includes it, one channel for left and right that was given to one of them, or labels of
            another form.
    """
    labels = _values(dataset, case)
    regions = any(len(values) > 1 for values in labels.values())
    if regions:
        # Channel c is the c-th region, each with a sigmoid of its own.
        channel_of = {name: channel for channel, name in enumerate(labels)}
        outputs = len(labels)
    else:
        channel_of = {name: values[0] for name, values in labels.items()}
        outputs = len(labels) + 1
        if sorted(channel_of.values()) != list(range(1, outputs)):
            raise InvalidInput(
                "label ids of dataset.json are not consecutive",
                case=case,
                expected=f"1 to {len(labels)}",
                got=sorted(channel_of.values()),
            )
    organ_of, left_out = _meanings(labels, choices, scheme, case)
    organs = tuple(name for name in scheme.names if name in organ_of.values())
    names = {organ: [n for n, o in organ_of.items() if o == organ] for organ in organs}
    head = Head(
        "sigmoid" if regions else "softmax",
        tuple(tuple(channel_of[name] for name in names[organ]) for organ in organs),
    )
    values = {organ: _own_value(names[organ], labels) for organ in organs}
    return NnunetLabels(organs, head, outputs, values, left_out)


def _values(dataset: Mapping[str, Any], case: str) -> dict[str, tuple[int, ...]]:
    """Label or region → its values, without background and ignored voxels."""
    labels = dataset.get("labels")
    if not isinstance(labels, Mapping) or labels.get(BACKGROUND) != 0:
        raise InvalidInput(
            "dataset.json has no labels of nnU-Net v2",
            case=case,
            expected='"labels": {"background": 0, "liver": 1, …}',
            got=labels,
        )
    found = {}
    for name, value in labels.items():
        if name in (BACKGROUND, IGNORE):
            continue
        values = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not values or not all(isinstance(one, int) for one in values):
            raise InvalidInput(
                f"label {name!r} has no id", case=case, expected="a number, or several", got=value
            )
        if set(values) != {0}:
            found[str(name)] = values
    return found


def _meanings(
    labels: Mapping[str, tuple[int, ...]], choices: NnunetChoices, scheme: OrganScheme, case: str
) -> tuple[dict[str, str], dict[str, str]]:
    """Label → organ, and label → why it is none."""
    given = _given(labels, choices, scheme, case)
    organ_of: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in labels:
        organ = given[name] if name in given else organ_called(name, scheme)
        if organ is not None:
            organ_of[name] = organ
        elif name in choices.left_out:
            left_out[name] = "as told"
        elif both := _sides(name, scheme):
            left_out[name] = f"one channel for {' and '.join(both)}, which no window tells apart"
        else:
            left_out[name] = NO_ORGAN
    _require_lesions_settled(labels, organ_of, given, scheme, case)
    if not organ_of:
        raise InvalidInput(
            "no label of the dataset is an organ of ours",
            case=case,
            expected=f"one of {', '.join(scheme.names)}",
            got="; ".join(f"{name}: {why}" for name, why in left_out.items()),
            remedy="say which label means which organ: --label liver=Leber",
        )
    return organ_of, left_out


def _given(
    labels: Mapping[str, tuple[int, ...]], choices: NnunetChoices, scheme: OrganScheme, case: str
) -> dict[str, str | None]:
    """What the user said of labels, or the preset that was named: an organ, or none (None)."""
    given: dict[str, str | None] = {}
    if choices.preset is not None:
        known = preset(choices.preset).within(scheme)
        for name, values in labels.items():
            structures = {known.values[value] for value in values if value in known.values}
            if len(structures) == 1:
                structure = structures.pop() or ()
                given[name] = structure[0] if len(structure) == 1 else None
    told = [
        *((name, scheme[organ].name) for organ, names in choices.labels.items() for name in names),
        *((name, None) for name in choices.left_out),
    ]
    for name, organ in told:
        if name not in labels:
            raise InvalidInput(
                f"dataset.json has no label {name!r}",
                case=case,
                expected=", ".join(labels),
                got=name,
            )
        if [one for one, _ in told].count(name) > 1:
            raise InvalidInput(
                f"label {name!r} was given twice", case=case, expected="one organ, or left out"
            )
        both = _sides(name, scheme)
        if organ in both:
            raise InvalidInput(
                f"label {name!r} means {' and '.join(both)} in one channel, which cannot be one of "
                "them",
                case=case,
                expected="a label for each side",
                got=f"{organ}={name}",
                remedy=f"leave it out (--leave-out '{name}'), or train with a label for each side",
            )
        given[name] = organ
    return given


def _require_lesions_settled(
    labels: Mapping[str, tuple[int, ...]],
    organ_of: Mapping[str, str],
    given: Mapping[str, str | None],
    scheme: OrganScheme,
    case: str,
) -> None:
    """Asks about lesions, but for those in the region of an organ, which includes them."""
    included = {value for name in organ_of for value in labels[name]}

    lesions = open_lesions(
        [name for name in labels if name not in given and not set(labels[name]) <= included],
        scheme,
        organ_of.values(),
        organ_of,
    )
    require_answers(
        lesions,
        case,
        "--label 'liver=NAME' joins it to the liver, --leave-out 'NAME' keeps it apart; or name "
        "the dataset's --preset",
    )


def _sides(name: str, scheme: OrganScheme) -> tuple[str, ...]:
    """Left and right, if a label of this name (or its lesion) means both; else nothing."""
    found = scheme.called(without_lesion(name) or name)
    return tuple(organ.name for organ in found) if len(found) > 1 else ()


def _own_value(names: list[str], labels: Mapping[str, tuple[int, ...]]) -> int:
    """The value that says an organ and as little else as can be: in the fewest of the dataset's
    regions, and no lesion if there is another."""
    candidates = [(value, name) for name in names for value in labels[name]]

    def others(value: int) -> int:
        return sum(value in values for name, values in labels.items() if name not in names)

    return min(candidates, key=lambda one: (others(one[0]), is_lesion(one[1])))[0]
