from .accounts import ACCOUNTS_FILE, FIRST_USER, Accounts, write_private
from .forwarding import ClientAddressMiddleware, claimed_address, client_address
from .roles import Identity, Role, roles_named
from .sign_in_attempts import AttemptKey, SignInAttempts
from .sign_in_cache import SignInCache

__all__ = [
    "ACCOUNTS_FILE",
    "FIRST_USER",
    "Accounts",
    "AttemptKey",
    "ClientAddressMiddleware",
    "Identity",
    "Role",
    "SignInAttempts",
    "SignInCache",
    "claimed_address",
    "client_address",
    "roles_named",
    "write_private",
]
