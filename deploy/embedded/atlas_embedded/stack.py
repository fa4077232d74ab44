"""The embedded stack as a whole: up, down, status, logs.

All state is in the processes themselves and in ``<home>/run``; any of it, and the command that
works on it, may be killed at any moment, and the next `up` or `down` puts things right.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import psutil
from atlas_core.errors import AtlasError, ConfigurationError, Conflict, NotFound, Unavailable
from atlas_core.frozen_model import FrozenModel
from filelock import FileLock, Timeout
from pydantic import Field

from atlas_embedded import processes
from atlas_embedded.components import Component, Probe, components
from atlas_embedded.logs import follow as follow_log
from atlas_embedded.logs import rotate, tail
from atlas_embedded.ports import require_free
from atlas_embedded.processes import ProcessRecord
from atlas_embedded.settings import ComponentName, EmbeddedSettings

OnEvent = Callable[[str], None]
"""Takes one line for people about what happens now."""

State = Literal["healthy", "starting", "unhealthy", "died", "stopped"]

_POLL_S = 0.1

_ORPHAN_TIMEOUT_S = 5.0
"""A stub process notices within two seconds that its server is gone; nobody else should be left."""

_MEND_S = 15.0
"""For a part that runs to become healthy again, once what it needs is: it looks about every second.
"""

_LOG_LINES_IN_ERROR = 15


class ComponentStatus(FrozenModel):
    """How one part is."""

    name: ComponentName
    state: State = Field(description="died: it ended although nobody stopped it.")
    address: str
    pid: int | None = None
    rss_bytes: int | None = Field(default=None, description="Resident memory of all its processes.")
    uptime_s: float | None = None
    detail: str = ""


def _silent(line: str) -> None:
    return None


def up(settings: EmbeddedSettings, *, on_event: OnEvent = _silent) -> tuple[ComponentStatus, ...]:
    """Starts what does not run, mends what is not healthy, and leaves the rest alone.

    Returns when every part has proved that it works. If it fails, the parts that this call started
    are stopped again.

    Raises:
        ConfigurationError: a port is taken, the environment of Triton or the models are missing,
            or Triton refuses a model; what ran before keeps running.
        Unavailable: a part does not become healthy; its last log lines are in the message.
        Conflict: another `up` or `down` has been at work for too long.
    """
    parts = components(settings)
    settings.make_home()
    with _owners_alone(), _locked(settings):
        for part in parts:
            part.prepare()
        start = _Start(settings, on_event)
        try:
            start.run(parts)
        except BaseException:
            for part in reversed(start.launched):
                _stop(settings, part)
            raise
    return tuple(_row(settings, part, "healthy", start.words[part.name]) for part in parts)


def down(
    settings: EmbeddedSettings,
    *,
    names: Collection[ComponentName] | None = None,
    on_event: OnEvent = _silent,
) -> tuple[ComponentName, ...]:
    """Stops all parts, or those in `names`, and removes what they left; idle when nothing runs.

    Returns:
        the parts that ran.

    Raises:
        Conflict: another `up` or `down` has been at work for too long.
    """
    stopped: list[ComponentName] = []
    if not settings.run.exists() and not processes.marked(settings.stack_id):
        return ()
    with _locked(settings):
        for part in reversed(components(_whole(settings))):
            if (names is None or part.name in names) and _stop(settings, part):
                on_event(f"{part.name} stopped")
                stopped.append(part.name)
        if names is None:
            processes.end(processes.marked(settings.stack_id), _ORPHAN_TIMEOUT_S)
    return tuple(stopped)


@contextlib.contextmanager
def running(settings: EmbeddedSettings, *, on_event: OnEvent = _silent) -> Iterator[None]:
    """The stack for as long as the block lasts; parts that ran before it keep running after it."""
    before = {
        part.name for part in components(settings) if _record(settings, part.name) is not None
    }
    up(settings, on_event=on_event)
    try:
        yield
    finally:
        ours = [name for name in settings.components if name not in before]
        down(settings, names=ours, on_event=on_event)


def status(settings: EmbeddedSettings) -> tuple[ComponentStatus, ...]:
    """How every part is now; changes nothing."""
    parts = components(settings)
    with ThreadPoolExecutor(len(parts)) as pool:
        return tuple(pool.map(lambda part: _look(settings, part), parts))


def logs(
    settings: EmbeddedSettings, name: ComponentName, *, follow: bool = False, lines: int = 50
) -> Iterator[str]:
    """The last `lines` log lines of a part; with `follow` also every later one, without end.

    Raises:
        NotFound: the part was never started.
    """
    log = settings.log(name)
    if follow:
        yield from follow_log(log, lines)
        return
    if not log.exists():
        raise NotFound(f"{name} has no log", remedy="it was never started: run `atlasloop up`")
    yield from tail(log, lines)


class _Start:
    """One call of `up`: which parts it launched, and what the healthy ones said."""

    def __init__(self, settings: EmbeddedSettings, on_event: OnEvent) -> None:
        self.settings = settings
        self.on_event = on_event
        self.launched: list[Component] = []
        self.words: dict[str, str] = {}

    def run(self, parts: Sequence[Component]) -> None:
        missing = [part for part in parts if not self._runs_as_it_should(part)]
        for part in missing:  # all ports are looked at before anything is started
            self._require_place(part)
        for part in missing:
            if not part.needs:  # these come up side by side
                self._launch(part)
        for part in parts:
            if part in missing:
                if part not in self.launched:
                    self._launch(part)
                self._bring_into_service(part)
            elif not self._keep(part):
                self._require_place(part)
                self._launch(part)
                self._bring_into_service(part)

    def _runs_as_it_should(self, part: Component) -> bool:
        """Whether the process is there, and started by the same command; health comes later."""
        record = _record(self.settings, part.name)
        if record is None:
            return False
        if record.launch == part.launch().digest:
            return True
        self.on_event(f"{part.name} runs with other settings: starting it again")
        _stop(self.settings, part)
        return False

    def _require_place(self, part: Component) -> None:
        """Clears away what an earlier process left, and refuses when a port is taken."""
        _clear(self.settings, part)
        for field in part.port_fields:
            require_free(self.settings, field)

    def _keep(self, part: Component) -> bool:
        """Whether the running `part` is, or could be made, healthy; if not, it is stopped."""
        record = _record(self.settings, part.name)
        if record is not None:
            # One that was launched a moment ago, by a command that was killed, may still come up.
            young_until = record.started_at + self.settings.start_timeout_s
            try:
                self._settle(part, record, max(young_until, time.time() + _MEND_S))
            except Unavailable as error:
                self.on_event(f"{part.name} runs but does not work ({error}): starting it again")
            else:
                self.on_event(f"{part.name} already runs at {part.address}")
                return True
        _stop(self.settings, part)
        return False

    def _launch(self, part: Component) -> None:
        self.on_event(f"{part.name} starts")
        log = self.settings.log(part.name)
        rotate(log)
        launch = part.launch()
        self.launched.append(part)
        try:
            record = processes.start(
                launch.command,
                launch.environment(self.settings, part.name),
                log,
                launch.digest,
                launch.folder,
            )
        except OSError as error:
            raise ConfigurationError(f"{part.name} cannot be started", got=error) from None
        processes.save(record, _record_path(self.settings, part.name))

    def _bring_into_service(self, part: Component) -> None:
        record = _record(self.settings, part.name)
        try:
            if record is None:
                raise Unavailable("it ended at once")
            self._settle(part, record, time.time() + self.settings.start_timeout_s)
        except Unavailable as error:
            raise self._with_log(part, error) from None
        self.on_event(f"{part.name} is ready at {part.address}")

    def _settle(self, part: Component, record: ProcessRecord, until: float) -> None:
        self._await(part.answers, record, until)
        part.settle()
        self.words[part.name] = self._await(part.healthy, record, until)

    def _await(self, probe: Probe, record: ProcessRecord, until: float) -> str:
        """Waits until `probe` is content; a process that ends meanwhile never makes it so."""
        while True:
            try:
                return probe()
            except Unavailable:
                if not record.alive():
                    raise Unavailable("it ended") from None
                if time.time() >= until:
                    raise
            time.sleep(_POLL_S)

    def _with_log(self, part: Component, error: Unavailable) -> Unavailable:
        log = self.settings.log(part.name)
        last = "\n".join(f"    {line}" for line in tail(log, _LOG_LINES_IN_ERROR))
        return Unavailable(
            f"{part.name} did not come into service: {error}",
            remedy=f"see {log}, whose last lines are\n{last}" if last else f"{log} is empty",
        )


def _look(settings: EmbeddedSettings, part: Component) -> ComponentStatus:
    record = _record(settings, part.name)
    if record is None:
        died = _record_path(settings, part.name).exists()
        orphans = len(processes.marked(settings.stack_id, part.name))
        detail = f"{orphans} processes of it are left" if orphans else ""
        return _row(settings, part, "died" if died else "stopped", detail)
    try:
        return _row(settings, part, "healthy", part.healthy())
    except AtlasError as error:
        young = time.time() - record.started_at < settings.start_timeout_s
        state: State = "starting" if young and not _answers(part) else "unhealthy"
        return _row(settings, part, state, str(error))


def _answers(part: Component) -> bool:
    try:
        part.answers()
    except AtlasError:
        return False
    return True


def _row(settings: EmbeddedSettings, part: Component, state: State, detail: str) -> ComponentStatus:
    row = ComponentStatus(name=part.name, state=state, address=part.address, detail=detail)
    record = _record(settings, part.name)
    if record is None:
        return row
    return row.model_copy(
        update={
            "pid": record.pid,
            "rss_bytes": _resident_bytes(record.pid),
            "uptime_s": round(time.time() - record.started_at, 1),
        }
    )


def _resident_bytes(pid: int) -> int | None:
    try:
        leader = psutil.Process(pid)
        family = [leader, *leader.children(recursive=True)]
        return sum(int(process.memory_info().rss) for process in family)
    except psutil.NoSuchProcess:
        return None


def _stop(settings: EmbeddedSettings, part: Component) -> bool:
    """Ends `part` and clears up after it; whether it ran."""
    record = _record(settings, part.name)
    if record is not None:
        # The first process alone: Triton unloads its models in order, Prefect lets runs end.
        processes.end([psutil.Process(record.pid)], settings.stop_timeout_s)
    orphans = _clear(settings, part)
    _record_path(settings, part.name).unlink(missing_ok=True)
    return record is not None or orphans


def _clear(settings: EmbeddedSettings, part: Component) -> bool:
    """Ends what is left of a part without its first process; whether there was something."""
    orphans = processes.marked(settings.stack_id, part.name)
    processes.end(orphans, _ORPHAN_TIMEOUT_S)
    part.clear()
    return bool(orphans)


def _whole(settings: EmbeddedSettings) -> EmbeddedSettings:
    """The same stack with all its parts: what was started under other settings stops as well."""
    default = EmbeddedSettings.model_fields["components"].default
    return settings.model_copy(update={"components": default})


def _record(settings: EmbeddedSettings, name: ComponentName) -> ProcessRecord | None:
    return processes.load(_record_path(settings, name))


def _record_path(settings: EmbeddedSettings, name: ComponentName) -> Path:
    return settings.run / f"{name}.json"


@contextlib.contextmanager
def _owners_alone() -> Iterator[None]:
    """What is made meanwhile, and by parts that are started, is its owner's alone: CTs, labels."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def _locked(settings: EmbeddedSettings) -> Iterator[None]:
    """Makes other calls of `up` and `down` on this stack wait; the kernel releases the lock if this
    process dies.

    Raises:
        Conflict: the other call takes longer than bringing up one part after the other may take.
    """
    lock = settings.run / "lock"
    patience_s = settings.start_timeout_s * len(settings.components)
    try:
        held = FileLock(lock, patience_s, poll_interval=_POLL_S).acquire()
    except Timeout:
        raise Conflict(
            "another `up` or `down` of this stack does not end",
            got=f"process {lock.read_text(encoding='ascii').strip() or 'unknown'}",
            remedy="wait for it, or end it",
        ) from None
    with held:
        lock.write_text(str(os.getpid()), encoding="ascii")
        yield
