from .accounts import ACCOUNTS_FILE, FIRST_USER, Accounts, write_private
from .forwarding import ClientAddress, claimed_address, client_address
from .roles import Identity, Role, known_roles
from .sign_in_attempts import Attempts, Key
from .sign_in_cache import KnownSignIns

__all__ = [
    "ACCOUNTS_FILE",
    "FIRST_USER",
    "Accounts",
    "Attempts",
    "ClientAddress",
    "Identity",
    "Key",
    "KnownSignIns",
    "Role",
    "claimed_address",
    "client_address",
    "known_roles",
    "write_private",
]
