from .deidentification import Deidentified, deidentified, require_takeable
from .dicomweb import DicomWebPacs
from .dimse import DimsePacs, Receiver
from .inbox import Inbox, Receipt
from .pseudonyms import Pseudonyms
from .pulling import Pull, PullSummary, connect, read_list, receiving
from .pushing import Push
from .remote import FoundSeries, Pacs, SeriesQuery
from .settings import PacsSettings
from .transfers import Transfer, Transfers, TransferState
from .vault import SealedImage, Vault

__all__ = [
    "Deidentified",
    "DicomWebPacs",
    "DimsePacs",
    "FoundSeries",
    "Inbox",
    "Pacs",
    "PacsSettings",
    "Pseudonyms",
    "Pull",
    "PullSummary",
    "Push",
    "Receipt",
    "Receiver",
    "SealedImage",
    "SeriesQuery",
    "Transfer",
    "TransferState",
    "Transfers",
    "Vault",
    "connect",
    "deidentified",
    "read_list",
    "receiving",
    "require_takeable",
]
