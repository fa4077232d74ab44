from .access import SignedIn, TheReview, annotator_of, identity
from .body_limit import BodyLimit
from .downloads import VOLUME_TYPE, file_answer
from .uploads import MULTIPART_FILE, Received, file_of, label_on_grid, on_disk, received_form

__all__ = [
    "MULTIPART_FILE",
    "VOLUME_TYPE",
    "BodyLimit",
    "Received",
    "SignedIn",
    "TheReview",
    "annotator_of",
    "file_answer",
    "file_of",
    "identity",
    "label_on_grid",
    "on_disk",
    "received_form",
]
