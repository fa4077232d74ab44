"""SIGKILL at random moments, of every process, during everything that writes.

Each work is done once in peace. Then it is begun again and again, and whoever works on it is killed
at a random moment; it is taken up until it completes. What was promised stays true after every
kill, and in the end nothing tells what happened. ``--kills`` says how many kills each work gets
(where that is one, only some works are attacked), ``--kill-seed`` which ones.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from atlas_core.catalog import Catalog
from atlas_core.imaging import read_volume, write_volume
from atlas_core.organs import ABDOMEN_ATLAS
from atlas_core.store import CaseStore
from atlas_core.store.backup import verify_backup
from atlas_embedded.settings import ComponentName
from small_cts import write_small_cts
from stack import Stack, open_stack
from store_content import broken_promises, files_of, rows_of
from triton_server import ORGANS as TINY_ORGANS

pytestmark = pytest.mark.stack

CASES = 5
COMMAND = "command"
"""The victim that is not a part of the stack: who does the work."""

WORKS = ("import", "score", "iterate", "assemble", "release", "backup", "restore")
SHORT = ("import", "release", "restore")
"""Scoring and iterating are killed by tests/e2e as well."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A catalog and a case store, and what a work makes beside them."""

    folder: Path
    store: CaseStore

    @property
    def catalog_file(self) -> Path:
        return self.folder / "catalog.sqlite"

    @property
    def output(self) -> Path:
        """A folder that a work publishes."""
        return self.folder / "output"

    def open(self) -> Catalog:
        return Catalog.open(f"sqlite:///{self.catalog_file}")

    def environment(self) -> dict[str, str]:
        return {
            "ATLASLOOP_STORE": str(self.store.root),
            "ATLASLOOP_CATALOG_URL": f"sqlite:///{self.catalog_file}",
        }

    def broken(self) -> list[str]:
        if not self.catalog_file.exists():
            return []
        with self.open() as catalog:
            return broken_promises(catalog, self.store)


def catalog_and_store(place: Place) -> Result:
    with place.open() as catalog:
        return {"rows": rows_of(catalog), "files": files_of(place.store.root)}


def output(place: Place) -> Result:
    return {"files": files_of(place.output)}


def published(place: Place) -> bool:
    """The folder is there: then all of it is."""
    return place.output.exists()


def backed_up(place: Place) -> bool:
    if not published(place):
        return False
    verify_backup(place.output)
    return True


def restored(place: Place) -> bool:
    """The catalog has rows: then it has all of them, which the comparison shows."""
    if not place.catalog_file.exists():
        return False
    with place.open() as catalog:
        return bool(catalog.cases())


def never(place: Place) -> bool:
    return False


@dataclass(frozen=True)
class Work:
    """Something that writes.

    Attributes:
        begin: makes the place in a new folder, as it is before the work.
        command: arguments of `atlasloop`.
        victims: who may be killed meanwhile.
        result: what it leaves; equal for equal work.
        done: whether it was completed although its command was killed.
    """

    begin: Callable[[Path], Place]
    command: Callable[[Place], tuple[str, ...]]
    victims: tuple[ComponentName | str, ...] = (COMMAND,)
    result: Callable[[Place], Result] = catalog_and_store
    done: Callable[[Place], bool] = never


@dataclass
class Site:
    """A running stack, and places in several states to begin from."""

    stack: Stack
    folder: Path
    cts: Path
    states: dict[str, Path] = field(default_factory=dict)

    def keep(self, state: str, place: Place) -> None:
        """Make a state out of `place`, which nobody uses at this moment."""
        kept = self.folder / "states" / state
        shutil.copytree(place.store.root, kept / "store")
        shutil.copy(place.catalog_file, kept / "catalog.sqlite")
        if place.output.exists():
            shutil.copytree(place.output, kept / "output")
        self.states[state] = kept

    def empty(self, folder: Path) -> Place:
        return Place(folder, CaseStore(folder / "store"))

    def copy(self, state: str, folder: Path, *, catalog: bool = True, made: bool = False) -> Place:
        """A place of its own in a state; `made`: with what the last work published."""
        shutil.copytree(self.states[state] / "store", folder / "store")
        if catalog:
            shutil.copy(self.states[state] / "catalog.sqlite", folder)
        if made:
            shutil.copytree(self.states[state] / "output", folder / "output")
        return self.empty(folder)

    def served(self, state: str, folder: Path) -> Place:
        """A catalog of its own, over the store that the attention service works on."""
        store = CaseStore(self.stack.settings.store)
        shutil.rmtree(store.root, ignore_errors=True)
        shutil.copytree(self.states[state] / "store", store.root)
        shutil.copy(self.states[state] / "catalog.sqlite", folder)
        return Place(folder, store)

    def start(self, work: Work, place: Place) -> subprocess.Popen[str]:
        """In a session of its own, so that a signal meets nobody else."""
        log = (place.folder / "log").open("a")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "atlas_flows.cli", *work.command(place)],
                env=self.stack.environment() | place.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )


@dataclass
class Tally:
    kills: int = 0
    lost: list[str] = field(default_factory=list)


def in_peace(site: Site, work: Work, folder: Path) -> tuple[Place, float]:
    """The place after the work, and the seconds it took."""
    folder.mkdir(parents=True)
    place = work.begin(folder)
    start = time.monotonic()
    process = site.start(work, place)
    assert process.wait() == 0, (folder / "log").read_text()
    return place, time.monotonic() - start


def kill_at_random(
    site: Site, work: Work, process: subprocess.Popen[str], moment_s: float, dice: random.Random
) -> bool:
    """SIGKILL to one of the victims; False if the work had ended before that moment."""
    try:
        process.wait(timeout=moment_s)
    except subprocess.TimeoutExpired:
        pass
    else:
        return False
    victim = dice.choice(work.victims)
    if victim != COMMAND:
        site.stack.kill(victim)  # type: ignore[arg-type]
    if victim in (COMMAND, "prefect"):
        # Prefect's client goes on trying to tell its server of every task; that is not awaited.
        os.killpg(process.pid, signal.SIGKILL)
    if victim != COMMAND:
        site.stack.restart()
    process.wait()  # whether it got over it or gave up: the next one goes on
    return True


def attack(site: Site, work: Work, kills: int, dice: random.Random, folder: Path) -> Tally:
    """Kills until there were enough of them; every begun work is completed and looked at."""
    peaceful, seconds = in_peace(site, work, folder / "peace")
    expected = work.result(peaceful)
    assert expected["files"], "a work that leaves nothing shows nothing"
    tally = Tally()
    begun = 0
    while tally.kills < kills:
        begun += 1
        here = folder / f"begun-{begun}"
        here.mkdir()
        place = work.begin(here)
        completed = False
        while not completed:
            process = site.start(work, place)
            killed = tally.kills < kills and kill_at_random(
                site, work, process, dice.uniform(0, seconds), dice
            )
            tally.kills += killed
            if not killed:
                assert process.wait() == 0, (here / "log").read_text()
            tally.lost += place.broken()
            completed = not killed or work.done(place)
        found = work.result(place)
        place.store.sweep(older_than_hours=0)
        tally.lost += differences(expected, found)
        shutil.rmtree(here)
    return tally


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Names of files and tables that are not as they should be, with what they are."""
    return [
        f"{kind}: {name}: {expected[kind].get(name)!r:.1500} became {found[kind].get(name)!r:.1500}"
        for kind in expected
        for name in sorted({*expected[kind], *found[kind]})
        if expected[kind].get(name) != found[kind].get(name)
    ]


def write_labelled_cts(folder: Path) -> None:
    """Case folders with a mask of every organ that the tiny models do not know."""
    write_small_cts(folder, CASES, 5)
    for number, ct in enumerate(sorted(folder.glob("*.nii.gz"))):
        case = folder / f"case_{number}"
        (case / "segmentations").mkdir(parents=True)
        ct.rename(case / "ct.nii.gz")
        geometry = read_volume(case / "ct.nii.gz").geometry
        for organ in ABDOMEN_ATLAS:
            if organ.name not in TINY_ORGANS:
                mask = np.zeros(geometry.shape, np.uint8, order="F")
                mask[8 + 4 * organ.label : 11 + 4 * organ.label, 10:20, 10 + number : 20] = 1
                write_volume(case / "segmentations" / f"{organ.name}.nii.gz", mask, geometry)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, stack_models: Path) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("kills")
    write_labelled_cts(root / "cts")
    with open_stack(root / "home", stack_models, ("triton", "attention", "prefect")) as stack:
        site = Site(stack, root, root / "cts")
        for state, work in states(site).items():
            place, _ = in_peace(site, work, root / "preparation" / state)
            site.keep(state, place)
        yield site


def states(site: Site) -> dict[str, Work]:
    """What leads from nothing to everything; each state is what its work leaves."""
    works = works_on(site)
    return {
        "imported": works["import"],
        "scored": works["score"],
        "assembled": works["assemble"],
        "backed-up": works["backup"],
    }


def works_on(site: Site) -> dict[str, Work]:
    return {
        "import": Work(
            begin=site.empty,
            command=lambda place: ("import", str(site.cts), "--dataset", "killed"),
        ),
        "score": Work(
            begin=partial(site.served, "imported"),
            command=lambda place: ("score", "--in-flight", "2", "--patience", "1"),
            victims=(COMMAND, COMMAND, "triton", "attention", "prefect"),
        ),
        "iterate": Work(
            begin=partial(site.served, "imported"),
            command=lambda place: ("iterate", "--share", "0.5"),
            victims=(COMMAND, COMMAND, "triton", "attention", "prefect"),
        ),
        "assemble": Work(
            begin=partial(site.copy, "scored"),
            command=lambda place: ("assemble", "--in-flight", "2", "--masks"),
            victims=(COMMAND, COMMAND, "prefect"),
        ),
        "release": Work(
            begin=partial(site.copy, "assembled"),
            command=lambda place: (
                "release", str(place.output), "--accept", "unknown", "--cts", "copy"
            ),
            victims=(COMMAND, COMMAND, "prefect"),
            result=output,
            done=published,
        ),
        "backup": Work(
            begin=partial(site.copy, "assembled"),
            command=lambda place: ("backup", str(place.output)),
            result=output,
            done=backed_up,
        ),
        "restore": Work(
            begin=partial(site.copy, "backed-up", catalog=False, made=True),
            command=lambda place: ("restore", str(place.output)),
            done=restored,
        ),
    }  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All works where there is time for several kills of each, else `SHORT`."""
    names = WORKS if metafunc.config.getoption("kills") > 1 else SHORT
    metafunc.parametrize("name", names)


def test_a_work_that_is_killed_at_random_loses_nothing(
    name: str,
    site: Site,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    kills, seed = pytestconfig.getoption("kills"), pytestconfig.getoption("kill_seed")
    tally = attack(site, works_on(site)[name], kills, random.Random(f"{seed} {name}"), tmp_path)
    record_property("kills", tally.kills)
    record_property("lost", len(tally.lost))
    assert tally.lost == []
    assert tally.kills == kills
