"""A SIMULATED annotator, for demonstrations, tests and studies: it knows the truth of phantoms.

It works as people do, only through the review service's HTTP API: takes the most urgent case,
 replaces labels that are wrong by the truth, confirms the rest. Its account is named
simulated-annotator, so that the audit log and the provenance of every label show who it was.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx
import numpy as np
from atlas_core.errors import AtlasError, ConfigurationError, Conflict, NotFound, Unavailable
from atlas_core.frozen_model import FrozenModel
from atlas_core.geometry import VolumeGeometry
from atlas_core.imaging import content_sha256, read_cropped, read_label, read_volume, write_volume
from atlas_core.review import MINUTES_PER_CASE, Task, Verdict
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from atlas_flows.demos.shape_taking import Box, Effort, Mask, drawing, take_best_shapes
from atlas_flows.evaluation import dice_by_organ, truth_files

ACCOUNT: Final = "simulated-annotator"

MINUTES_PER_ORGAN: Final = MINUTES_PER_CASE / 9
"""A case of the paper's nine organs takes 15 minutes (§4.2); one with fewer takes less."""

ClicksStrokes = tuple[int, int]

_BOXES: Final = TypeAdapter(list[Box])

CONTENT: Final = re.compile(r".+_([0-9a-f]{12,})")
"""A case's id ends with the first digits of the checksum of its CT: 32, or 12 in old catalogs."""

TIMEOUT_S: Final = 120.0


class SimulatedWork(FrozenModel):
    """What the simulated annotator did."""

    revised: int = 0
    confirmed: int = 0
    skipped: int = Field(default=0, description="Cases whose truth is not available.")
    organs_replaced: int = 0
    minutes: float = Field(default=0.0, description="Time that it would have taken a person.")
    effort: Effort = Field(
        default=Effort(), description="Of the revised labels, with shapes taken before drawing."
    )
    effort_by_drawing: Effort = Field(
        default=Effort(), description="Of the same labels, if everything were drawn."
    )
    budget_spent: bool = Field(default=False, description="It ended before the queue was empty.")


@dataclass(frozen=True)
class AnnotatorPolicy:
    """How much the simulated annotator does, and which labels it replaces.

    Attributes:
        minutes: of a person's time; it takes no case that would exceed them.
        dice: a label with a lower Dice against the truth is replaced.
        dataset: takes only its cases; None: all.
    """

    minutes: float
    dice: float = 0.9
    dataset: str | None = None


class PhantomLabels:
    """True label maps of a folder of phantoms, found by the content of their CTs.

    Args:
        maps: by the checksum of the CT, `content_sha256`.
    """

    def __init__(self, maps: Mapping[str, Path]) -> None:
        self._maps = dict(maps)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Of a folder that `atlasloop phantoms` wrote: with CTs, and with their truth.

        Raises:
            NotFound: no list, or no case with both.
        """
        maps = {
            content_sha256(read_volume(case.ct)): case.combined
            for case in truth_files(folder)
            if case.ct is not None and case.combined is not None
        }
        if not maps:
            raise NotFound(
                "the folder holds no CT with its true label map",
                remedy="name a folder that `atlasloop phantoms` wrote",
            )
        return cls(maps)

    def of_case(self, case_id: str) -> NDArray[np.uint8] | None:
        """The atlas's label ids on the CT's grid, uint8 ``[i, j, k]``, or None."""
        digits = CONTENT.fullmatch(case_id)
        for content, path in self._maps.items():
            if digits is not None and content.startswith(digits[1]):
                return np.asarray(read_label(path).voxels, np.uint8)
        return None


class ReviewApi:
    """The part of the review service's HTTP API that an annotator needs."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    @classmethod
    @contextmanager
    def open(cls, url: str, token: str) -> Iterator[Self]:
        """Connect as the account of the token."""
        with httpx.Client(
            base_url=f"{url.rstrip('/')}/api/v1",
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT_S,
            trust_env=False,
        ) as client:
            yield cls(client)

    def next(self, dataset: str | None) -> Task | None:
        """Lease the case that needs revision most, or None where nothing is left."""
        answer = self._ask("POST", "/queue/next", json={"dataset": dataset})
        return None if answer.status_code == 204 else Task.model_validate(answer.json())

    def give_back(self, task: Task) -> None:
        """Return the lease, so that another annotator can take the case."""
        self._ask("DELETE", f"/tasks/{task.id}/lease")

    def case(self, task: Task) -> dict[str, Any]:
        """The case of a task, with its labels."""
        case: dict[str, Any] = self._ask("GET", f"/tasks/{task.id}").json()["case"]
        return case

    def organ_labels(self) -> dict[str, int]:
        """Organ of the atlas → its value in label maps."""
        organs = self._ask("GET", "/organs").json()["organs"]
        return {organ["name"]: organ["label"] for organ in organs}

    def label_map(self, case_id: str, folder: Path) -> NDArray[Any]:
        """The labels in force, in one map ``[i, j, k]``."""
        path = folder / "label_map.nii.gz"
        path.write_bytes(self._ask("GET", f"/cases/{case_id}/label_map.nii.gz").content)
        return read_label(path).voxels

    def regions(self, case_id: str, organ: str) -> list[Box]:
        """Boxes of the attended regions of an organ, largest first."""
        asked = {"organ": organ}
        found = self._ask("GET", f"/cases/{case_id}/regions", params=asked).json()["regions"]
        return _BOXES.validate_python([region["box_ijk"] for region in found])

    def shapes(self, case_id: str, organ: str, ct: VolumeGeometry, folder: Path) -> list[Mask]:
        """What everybody says of an organ, in the order in which the page shows it."""
        asked = {"organ": organ}
        masks = []
        for shape in self._ask("GET", f"/cases/{case_id}/shapes", params=asked).json()["shapes"]:
            path = folder / "shape.nii.gz"
            address = f"/cases/{case_id}/shapes/{shape['id']}.nii.gz"
            path.write_bytes(self._ask("GET", address, params=asked).content)
            masks.append(read_cropped(path, ct, case=case_id) != 0)
        return masks

    def hand_in(self, task: Task, organ: str, base: str, mask: Path) -> str:
        """Submit a new label of one organ; returns its version."""
        asked = {"organ": organ, "base": base, "task": str(task.id)}
        with mask.open("rb") as file:
            answer = self._ask(
                "POST", f"/cases/{task.case_id}/labels", params=asked, files={"label": file}
            )
        return str(answer.json()["id"])

    def judge(self, task: Task, organ: str, verdict: Verdict) -> None:
        """Record the verdict on one organ."""
        self._ask("PUT", f"/tasks/{task.id}/organs/{organ}", json={"verdict": verdict.value})

    def finish(self, task: Task, ending: str, **body: Any) -> None:
        """`ending` is confirm, revise or skip."""
        self._ask("POST", f"/tasks/{task.id}/{ending}", json=body)

    def _ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        """One request.

        Raises:
            Unavailable: the service does not answer, or says that it cannot now.
            ConfigurationError: the token is not known.
            NotFound, Conflict: the case is gone, or somebody else has it.
        """
        try:
            answer = self._client.request(method, path, **given)
        except httpx.TransportError as error:
            raise Unavailable(
                f"the review service at {self._client.base_url} does not answer",
                got=type(error).__name__,
                remedy="start it (`atlasloop up`), then run this again",
            ) from None
        if answer.is_success:
            return answer
        kinds: dict[int, type[AtlasError]] = {
            401: ConfigurationError,
            403: ConfigurationError,
            404: NotFound,
            409: Conflict,
        }
        kind = kinds.get(answer.status_code, Unavailable)
        raise kind(f"the review service refused {method} {path}", got=answer.text[:500])


def annotate(
    api: ReviewApi,
    truth: PhantomLabels,
    policy: AnnotatorPolicy,
    on_task: Callable[[str], None] = lambda line: None,
) -> SimulatedWork:
    """Take cases until the queue is empty or the time is spent.

    Args:
        on_task: called with a line for people after each case.

    Raises:
        Unavailable, ConfigurationError: see `ReviewApi`. What was handed in stays.
    """
    done = SimulatedWork()
    while (task := api.next(policy.dataset)) is not None:
        minutes = MINUTES_PER_ORGAN * len(task.organs)
        if done.minutes + minutes > policy.minutes:
            api.give_back(task)
            return done.model_copy(update={"budget_spent": True})
        try:
            done, line = _one(api, truth, policy, task, done)
        except (NotFound, Conflict) as error:
            line = f"{task.case_id}: left, as it was deleted or taken: {error}"
        on_task(line)
    return done


def _one(
    api: ReviewApi, truth: PhantomLabels, policy: AnnotatorPolicy, task: Task, done: SimulatedWork
) -> tuple[SimulatedWork, str]:
    """One case; the work so far with it, and a line about it."""
    minutes = MINUTES_PER_ORGAN * len(task.organs)
    true_map = truth.of_case(task.case_id)
    if true_map is None:
        api.finish(task, "skip", reason="simulated annotator: its truth is not at hand")
        return _more(done, skipped=1), f"{task.case_id}: skipped, its truth is not at hand"
    with tempfile.TemporaryDirectory(prefix="simulated-") as name:
        versions, efforts = _replace_wrong(api, policy, task, true_map, Path(name))
    spent = {"seconds_spent": 60.0 * minutes}
    if not versions:
        visited = [one.organ for one in task.organs]
        api.finish(task, "confirm", visited=visited, **spent)
        return _more(done, confirmed=1, minutes=minutes), f"{task.case_id}: confirmed"
    api.finish(task, "revise", labels=versions, **spent)
    line = f"{task.case_id}: revised {', '.join(versions)}"
    more = _more(done, revised=1, organs_replaced=len(versions), minutes=minutes)
    for taking, by_drawing in efforts:
        spent_on = {
            "effort": more.effort.plus(*taking),
            "effort_by_drawing": more.effort_by_drawing.plus(*by_drawing),
        }
        more = more.model_copy(update=spent_on)
    return more, line


def _replace_wrong(
    api: ReviewApi, policy: AnnotatorPolicy, task: Task, true_map: NDArray[np.uint8], folder: Path
) -> tuple[dict[str, str], list[tuple[ClicksStrokes, ClicksStrokes]]]:
    """Hand in the truth of every organ whose label is wrong.

    Returns:
        Organ → its new version; and of each organ, what that takes a person who takes shapes first,
        and one who draws everything.
    """
    case = api.case(task)
    in_force = {label["organ"]: label for label in case["labels"]}
    ct = VolumeGeometry(tuple(case["shape"]), tuple(tuple(row) for row in case["affine"]))
    # What it handed in before it was stopped: those labels are right now.
    versions = {
        organ.organ: in_force[organ.organ]["id"]
        for organ in task.organs
        if organ.verdict is Verdict.NEEDS_REVISION
        and in_force.get(organ.organ, {}).get("author") == ACCOUNT
    }
    label_of = api.organ_labels()
    labels = {organ.organ: label_of[organ.organ] for organ in task.organs}
    label_map = api.label_map(task.case_id, folder)
    efforts = []
    for organ in _wrong(label_map, true_map, labels, policy.dice):
        true = true_map == labels[organ]
        drawn = label_map == labels[organ]
        by_drawing = drawing(drawn, true)
        shapes = api.shapes(task.case_id, organ, ct, folder)
        taken, clicks = take_best_shapes(drawn, true, shapes, api.regions(task.case_id, organ))
        left = drawing(taken, true)
        efforts.append(((clicks + left[0], left[1]), by_drawing))
        mask = true.astype(np.uint8)
        path = folder / f"{organ}.nii.gz"
        write_volume(path, np.asfortranarray(mask), ct)
        api.judge(task, organ, Verdict.NEEDS_REVISION)
        base = in_force[organ]["id"] if organ in in_force else "none"
        versions[organ] = api.hand_in(task, organ, base, path)
    return versions, efforts


def _wrong(
    label_map: NDArray[Any],
    true_map: NDArray[np.uint8],
    labels: Mapping[str, int],
    dice: float,
) -> list[str]:
    """Of the organs of `labels`, those whose Dice against the truth is below `dice`."""
    truth = {name: true_map == label for name, label in labels.items()}
    found = dice_by_organ(label_map, truth, labels)
    return [name for name in labels if found.get(name, 1.0) < dice]


def _more(done: SimulatedWork, **counts: float) -> SimulatedWork:
    return done.model_copy(
        update={name: getattr(done, name) + count for name, count in counts.items()}
    )
