"""``python -m atlas_attention``: serve until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import signal
import sys

from atlas_core.errors import ConfigurationError
from atlas_core.json_logs import log_to_stderr
from pydantic import ValidationError

from atlas_attention.server import AttentionServer, tune_allocator
from atlas_attention.settings import ENV_PREFIX, AttentionSettings

EXIT_CONFIGURATION = 2

_log = logging.getLogger(__name__)


def main() -> int:
    """Exit status: 0 after a signal, 2 if the configuration is invalid."""
    try:
        settings = AttentionSettings()
    except ValidationError as error:
        for problem in error.errors():
            field = ".".join(str(part) for part in problem["loc"]).upper()
            name = f"{ENV_PREFIX}{field}: " if field else ""
            sys.stderr.write(f"{name}{problem['msg']}\n")
        return EXIT_CONFIGURATION
    log_to_stderr(settings.log_level)
    tune_allocator()
    # Blocked before any thread starts, so that only the wait below receives the signal.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        with AttentionServer(settings):
            received = signal.sigwait(signals)
            _log.info("stopping", extra={"fields": {"signal": signal.Signals(received).name}})
    except ConfigurationError as error:
        _log.error("%s", error)
        return EXIT_CONFIGURATION
    _log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
