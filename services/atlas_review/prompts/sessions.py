"""Sessions with an nnInteractive server, which makes masks of prompts.

A session holds one CT, and the prompts that were given in it. Callers say all prompts of a shape
every time: what the session has not heard yet is given, and where it has heard something else (one
prompt fewer, another shape, or nothing, since the server was restarted) it begins anew. So nothing
depends on a session: it may be lost, or given up for another person's, at any time.

The server takes arrays as SimpleITK reads them, ``[k, j, i]``; ours are ``[i, j, k]``.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import httpx
import numpy as np
from atlas_core.errors import Conflict, InvalidInput, LimitExceeded, Unavailable
from atlas_core.imaging import Volume
from atlas_core.records import Case
from numpy.typing import NDArray

from atlas_review.prompts.prompt import Prompt, PromptKind, require_within

if TYPE_CHECKING:
    from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession as Remote

SWEEP_S: Final = 15.0
"""Seconds between two looks for sessions that nobody uses any more."""

_log = logging.getLogger(__name__)

ReadCT = Callable[[], Volume]


class PromptSessions:
    """The sessions of one process, by person and case. Safe to share between threads.

    Args:
        url: address of the server, as http://gpu.example.org:1527.
        api_key: what it asks for; empty: nothing.
        most: sessions held at once.
        timeout_s: seconds that one prediction may take.
    """

    def __init__(self, url: str, api_key: str, most: int, timeout_s: float) -> None:
        self._url = url
        self._api_key = api_key
        self._most = most
        self._timeout_s = timeout_s
        self._places: OrderedDict[tuple[str, str], _Place] = OrderedDict()
        self._lock = threading.Lock()

    def mask(
        self, who: str, case: Case, read_ct: ReadCT, prompts: Sequence[Prompt]
    ) -> NDArray[np.uint8]:
        """What the server makes of all prompts of one shape, in their order.

        Args:
            who: whose session it is.
            read_ct: reads the CT; called where the server does not have it yet.

        Returns:
            0 and 1, uint8 ``[i, j, k]`` on the grid of the CT.

        Raises:
            InvalidInput: a prompt lies beside the CT, or the server refuses it.
            LimitExceeded: the CT is too large for the server.
            Conflict: this person's last prompt on this case is still being worked on.
            Unavailable: the server does not answer, or has no place left.
        """
        require_within(prompts, case)
        with self._place(who, case) as place, _in_our_words(case, place):
            for _ in range(2):
                if place.session is None:
                    place.session = self._open(read_ct, besides=place)
                mask = place.session.follow(prompts)
                if mask is not None:
                    return mask
                place.end()  # the server was restarted, or has given the place to somebody else
        raise _no_answer(case, "it forgets each session at once")

    def end(self, who: str, case_id: str) -> None:
        """Give back the session of this person on this case, once nothing is computed in it."""
        with self._lock:
            place = self._places.get((who, case_id))
            if place is None:
                return
            if not place.busy.acquire(blocking=False):
                place.unwanted = True  # whoever uses it ends it
                return
            del self._places[who, case_id]
        place.end()

    def end_idle(self) -> None:
        """Give back what was not used for as long as the server itself would wait."""
        now = time.monotonic()
        while self._make_room(lambda place: now - place.used > place.idle_s):
            pass

    def close(self) -> None:
        """Give back every session that nothing is being computed in."""
        while self._make_room(lambda _: True):
            pass

    @contextlib.contextmanager
    def _place(self, who: str, case: Case) -> Iterator[_Place]:
        """The place of this person's session, which nobody else uses meanwhile."""
        with self._lock:
            place = self._places.setdefault((who, case.id), _Place())
            if not place.busy.acquire(blocking=False):
                raise Conflict(
                    "the last prompt is still being worked on",
                    case=case.id,
                    remedy="wait for its shape",
                )
            self._places.move_to_end((who, case.id))
            held = len(self._places)
        try:
            if held > self._most and not self._make_room(lambda one: one is not place):
                raise _no_place(case)
            yield place
        finally:
            place.used = time.monotonic()
            with self._lock:
                if place.unwanted or place.session is None:
                    del self._places[who, case.id]
            if place.unwanted:
                place.end()
            place.busy.release()

    def _make_room(self, may_go: Callable[[_Place], bool]) -> bool:
        """Give back the session that was used longest ago, of those idle ones that may go."""
        with self._lock:
            for key, place in self._places.items():
                if may_go(place) and place.busy.acquire(blocking=False):
                    del self._places[key]
                    break
            else:
                return False
        place.end()
        return True

    def _open(self, read_ct: ReadCT, besides: _Place) -> _Session:
        from nnInteractive.inference.remote import ServerAtCapacityError

        try:
            remote = self._claim()
        except ServerAtCapacityError:
            if not self._make_room(lambda place: place is not besides):
                raise
            remote = self._claim()
        try:
            image = np.ascontiguousarray(read_ct().voxels.T)
            remote.set_image(image[np.newaxis])
            remote.set_target_buffer(np.zeros(image.shape, np.uint8))
        except BaseException:
            remote.close()
            raise
        return _Session(remote)

    def _claim(self) -> Remote:
        # Not before it is needed: where torch is installed, the client loads it.
        from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession

        # An empty key, unlike None, is not looked up in the client's own environment variable.
        return nnInteractiveRemoteInferenceSession(
            self._url, api_key=self._api_key, read_timeout=self._timeout_s
        )


class _Place:
    """Where a session is kept; `busy` is held by whoever uses it."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        self.used = time.monotonic()
        self.session: _Session | None = None
        self.unwanted = False

    @property
    def idle_s(self) -> float:
        return self.session.remote.idle_timeout_seconds if self.session else 0.0

    def end(self) -> None:
        """Tell the server; what it does not hear ends there by itself."""
        if self.session is not None:
            self.session.remote.close()
            self.session = None


class _Session:
    """A session of the server's that has the CT, and what was said in it."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self._given: list[Prompt] = []
        self._may_undo = False
        self._refused = False

    def follow(self, prompts: Sequence[Prompt]) -> NDArray[np.uint8] | None:
        """The mask of exactly these prompts; None: the server has no such session any more."""
        from nnInteractive.inference.remote import SessionExpiredError

        try:
            self._forget_others(prompts)
            for prompt in prompts[len(self._given) :]:
                self._give(prompt)
                self._given.append(prompt)
                self._may_undo = self.remote.supports_undo
        except SessionExpiredError:
            return None
        except httpx.HTTPStatusError:
            self._refused = True
            raise
        return np.array(self._buffer.T, order="F")

    def _forget_others(self, prompts: Sequence[Prompt]) -> None:
        given = self._given
        if not self._refused and given == list(prompts[: len(given)]):
            return
        if (
            not self._refused
            and self._may_undo
            and given[:-1] == list(prompts)
            and self.remote.undo()
        ):
            given.pop()
        else:
            self.remote.reset_interactions()
            given.clear()
        self._may_undo = self._refused = False  # the server remembers one step

    def _give(self, prompt: Prompt) -> None:
        remote, positive = self.remote, prompt.positive
        if prompt.kind is PromptKind.POINT:
            remote.add_point_interaction(prompt.path[0][::-1], positive)
            return
        if prompt.kind is PromptKind.BOX:
            remote.add_bbox_interaction(_bounds(prompt.box), positive)
            return
        thickness = max(1, round(max(remote.preferred_scribble_thickness)))
        mask, box = prompt.drawn(self._buffer.shape[::-1], thickness)
        scribbles = prompt.kind is PromptKind.SCRIBBLE
        add = remote.add_scribble_interaction if scribbles else remote.add_lasso_interaction
        add(np.ascontiguousarray(mask.T), positive, interaction_bbox=_bounds(box))

    @property
    def _buffer(self) -> NDArray[np.uint8]:
        """The mask as the server last said it, ``[k, j, i]``."""
        buffer: NDArray[np.uint8] = self.remote.target_buffer
        return buffer


def _bounds(box: Sequence[slice]) -> list[list[int]]:
    """As the server wants a box: the last voxel excluded, ``[k, j, i]``."""
    return [[side.start, side.stop] for side in reversed(box)]


@contextlib.contextmanager
def _in_our_words(case: Case, place: _Place) -> Iterator[None]:
    """What goes wrong with the server, as errors of ours. Unless a prompt was refused, nobody knows
    then what the session holds: it ends."""
    from nnInteractive.inference.remote import ServerAtCapacityError

    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.BAD_REQUEST:
            place.end()
        raise _refusal(case, error.response) from None
    except httpx.TransportError as error:
        _log.warning("no answer of the nnInteractive server: %s", type(error).__name__)
        place.end()
        raise _no_answer(case, type(error).__name__) from None
    except ServerAtCapacityError:
        raise _no_place(case) from None
    except BaseException:
        place.end()
        raise


def _refusal(case: Case, answer: httpx.Response) -> Exception:
    with contextlib.suppress(ValueError, AttributeError):
        detail = str(answer.json().get("detail", ""))[:300]
        if answer.status_code == httpx.codes.BAD_REQUEST:
            return InvalidInput("the nnInteractive server refuses this", case=case.id, got=detail)
        if answer.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
            return LimitExceeded(
                "the CT is too large for the nnInteractive server", case=case.id, got=detail
            )
    _log.error("the nnInteractive server answers with status %d", answer.status_code)
    return _no_answer(case, f"status {answer.status_code}")


def _no_answer(case: Case, got: str) -> Unavailable:
    return Unavailable(
        "the nnInteractive server does not work at the moment",
        case=case.id,
        got=got,
        remedy="draw with another tool, and try again later",
    )


def _no_place(case: Case) -> Unavailable:
    return Unavailable(
        "all places of the nnInteractive server are taken",
        case=case.id,
        remedy="try again in a minute",
    )
