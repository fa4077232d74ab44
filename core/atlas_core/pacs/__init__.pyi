from .deidentification import Deidentified, deidentified, require_takeable
from .inbox import Inbox, Receipt
from .pseudonyms import Pseudonyms
from .transfers import Transfer, Transfers, TransferState
from .vault import SealedImage, Vault

__all__ = [
    "Deidentified",
    "Inbox",
    "Pseudonyms",
    "Receipt",
    "SealedImage",
    "Transfer",
    "TransferState",
    "Transfers",
    "Vault",
    "deidentified",
    "require_takeable",
]
