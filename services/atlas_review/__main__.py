"""``python -m atlas_review``: serve until SIGTERM or SIGINT, or manage the account file.

python -m atlas_review [serve] [--insecure]
python -m atlas_review add-user NAME ROLE…      the password is asked for
python -m atlas_review add-token NAME ROLE…     the token is printed
python -m atlas_review remove NAME              also signs out who is signed in by that name
"""

from __future__ import annotations

import argparse
import getpass
import logging
import os
import resource
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime

import uvicorn
from atlas_core.addresses import host_and_port
from atlas_core.catalog import Catalog
from atlas_core.errors import AtlasError, ConfigurationError
from atlas_core.json_logs import log_to_stderr
from atlas_core.review import AuditLog, SignIns, set_orphans_aside
from atlas_core.store import CaseStore
from pydantic import ValidationError

from atlas_review.auth import FIRST_USER, Accounts, Role
from atlas_review.connections import BoundedConnection
from atlas_review.service import open_catalog, signing_secret
from atlas_review.settings import ENV_PREFIX, ReviewSettings
from atlas_review.volumes import contact_sheet_worker

EXIT_CONFIGURATION = 2

COMMAND_LINE = "command line"
"""Author of changed accounts in the audit log; no user can have this name."""

_log = logging.getLogger(__name__)

APPLICATION = "atlas_review.app:create_app"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 after a signal, 2 if the configuration cannot work."""
    options = _parser().parse_args(arguments)
    if getattr(options, "insecure", False):
        os.environ[f"{ENV_PREFIX}INSECURE"] = "true"
    try:
        settings = ReviewSettings()
        return int(options.run(settings, options))
    except ValidationError as error:
        for problem in error.errors():
            field = ".".join(str(part) for part in problem["loc"]).upper()
            name = f"{ENV_PREFIX}{field}: " if field else ""
            sys.stderr.write(f"{name}{problem['msg']}\n")
    except AtlasError as error:
        sys.stderr.write(f"{error}\n")
    return EXIT_CONFIGURATION


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m atlas_review",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_serve)
    parser.add_argument(
        "--insecure", action="store_true", help="nobody signs in; only on a loopback address"
    )
    commands = parser.add_subparsers()
    serve = commands.add_parser("serve", help="serve (the default)")
    serve.set_defaults(run=_serve)
    for name, run in (("add-user", _add_user), ("add-token", _add_token)):
        add = commands.add_parser(name)
        add.set_defaults(run=run)
        add.add_argument("name")
        add.add_argument("roles", nargs="+", type=Role, choices=list(Role))
    remove = commands.add_parser("remove", help="remove a user or a machine")
    remove.set_defaults(run=_remove)
    remove.add_argument("name")
    return parser


def _serve(settings: ReviewSettings, options: argparse.Namespace) -> int:
    log_to_stderr(settings.log_level)
    # What can fail fails here, once, and not in every worker.
    CaseStore(settings.store).require_usable()
    open_catalog(settings).close()
    try:
        signing_secret(settings)
        if not settings.insecure and settings.oidc_issuer is None:
            announce_first_account(settings)
    except OSError as error:
        raise ConfigurationError(
            f"the folder {settings.home} cannot be read and written",
            got=error.strerror,
            remedy="check that its volume is mounted, writable for this user, and not full",
        ) from None
    host, port = host_and_port(settings.listen)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # every connection takes a file
    if settings.metrics_listen and settings.workers > 1:
        _log.warning("metrics are of one process, and not served with several workers")
    threading.Thread(target=_set_orphans_aside, args=(settings,), daemon=True).start()
    with contact_sheet_worker.running_worker(settings):
        uvicorn.run(
            APPLICATION,
            factory=True,
            http=BoundedConnection,
            host=host,
            port=port,
            workers=settings.workers,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # `ClientAddressMiddleware` does that
            timeout_keep_alive=settings.client_timeout_s,
            timeout_graceful_shutdown=5,
        )
    return 0


def _set_orphans_aside(settings: ReviewSettings) -> None:
    """In a thread of its own: in a large store it takes a while."""
    try:
        with Catalog.open(settings.catalog_url.get_secret_value()) as catalog:
            orphans = set_orphans_aside(CaseStore(settings.store), catalog)
    except (AtlasError, OSError) as error:
        _log.warning("files without a row were not looked for: %s", error)
        return
    for path in orphans:
        _log.warning("no row names this file: moved to orphans", extra={"fields": {"file": path}})


def announce_first_account(settings: ReviewSettings) -> None:
    """At the first start: make an account, and print its password once."""
    password = Accounts(settings.accounts_file).create()
    if password is not None:
        sys.stdout.write(
            f"first start: sign in as {FIRST_USER} with the password {password}\n"
            "(it is not shown again; `python -m atlas_review add-user` sets another)\n"
        )
        sys.stdout.flush()


def _add_user(settings: ReviewSettings, options: argparse.Namespace) -> int:
    if sys.stdin.isatty():
        password = getpass.getpass(f"password of {options.name}: ")
    else:
        password = sys.stdin.readline().rstrip("\n")
    Accounts(settings.accounts_file).add_user(options.name, password, tuple(options.roles))
    _record_change(settings, "add user", options.name, options.roles)
    return 0


def _add_token(settings: ReviewSettings, options: argparse.Namespace) -> int:
    token = Accounts(settings.accounts_file).add_token(options.name, tuple(options.roles))
    _record_change(settings, "add token", options.name, options.roles)
    sys.stdout.write(f"{token}\n")
    return 0


def _remove(settings: ReviewSettings, options: argparse.Namespace) -> int:
    removed = Accounts(settings.accounts_file).remove(options.name)
    ended = _record_change(settings, "remove account", options.name, ())
    if removed or ended:
        return 0
    sys.stderr.write(f"no account {options.name}, and no sign-in under this name\n")
    return 1


def _record_change(settings: ReviewSettings, action: str, name: str, roles: Sequence[Role]) -> int:
    """Put a changed account on record and end its sign-ins, whose password or roles are outdated.

    Returns:
        How many sign-ins ended.
    """
    detail = {"name": name, "roles": [role.value for role in roles]}
    with Catalog.open(settings.catalog_url.get_secret_value()) as catalog:
        AuditLog(catalog).add(datetime.now(UTC), COMMAND_LINE, action, detail)
        return SignIns(catalog).end_all(name)


if __name__ == "__main__":
    sys.exit(main())
