"""`make attack`: every attack of tests/attack, with many kills, and one JSON line at the end.

    python tests/attack_report.py [--kills N] [--kill-seed SEED] [further arguments of pytest]

    attacks  attempts: one for each test, or as many as it says that it made
    harm     attempts that did harm: of tests that failed
    kills    processes killed at random moments
    lost     what was promised, and not there or not right after a kill
    skipped  tests that could not attack here; pytest's summary above says why
    seed     the random moments: the same again with --kill-seed

Exit status 0 only without harm and without loss.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent / "attack"


@dataclass
class Tally:
    """Counts what the tests report; a plugin of pytest."""

    attacks: int = 0
    harm: int = 0
    kills: int = 0
    lost: int = 0
    skipped: int = 0
    seed: str = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and not report.skipped:
            said = {name: int(str(count)) for name, count in report.user_properties}
            attacks = said.get("attacks", 1)
            self.attacks += attacks
            self.harm += attacks * report.failed
            self.kills += said.get("kills", 0)
            self.lost += said.get("lost", 0)
        elif report.failed:  # a fixture: what it was for did not take place
            self.harm += 1
        self.skipped += report.skipped


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", default="20")
    parser.add_argument("--kill-seed", default=secrets.token_hex(4))
    chosen, others = parser.parse_known_args(arguments)
    tally = Tally(seed=chosen.kill_seed)
    options = ["--kills", chosen.kills, "--kill-seed", chosen.kill_seed, *others]
    status = pytest.main([str(FOLDER), *options], plugins=[tally])
    sys.stdout.write(json.dumps(asdict(tally)) + "\n")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
