from .accounts import ACCOUNTS_FILE, FIRST_USER, Accounts, write_private
from .forwarding import ClientAddressMiddleware, claimed_network, client_network
from .roles import Identity, Role, roles_named
from .sign_in_attempts import SignInAttempts
from .sign_in_cache import SignInCache

__all__ = [
    "ACCOUNTS_FILE",
    "FIRST_USER",
    "Accounts",
    "ClientAddressMiddleware",
    "Identity",
    "Role",
    "SignInAttempts",
    "SignInCache",
    "claimed_network",
    "client_network",
    "roles_named",
    "write_private",
]
