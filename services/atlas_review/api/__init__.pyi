from .access import SignedIn, TheReview, annotator_of, identity
from .body_limit import BodyLimit
from .downloads import VOLUME_TYPE, record_download, volume_response
from .forms import MULTIPART_FILE, file_in, received_form
from .paths import API_PREFIX
from .problems import PROBLEM_RESPONSES, answer_with_problems, problem
from .prompts import mask_of_prompts
from .session import Credentials, check_password
from .text_limit import TextLimit

__all__ = [
    "API_PREFIX",
    "MULTIPART_FILE",
    "PROBLEM_RESPONSES",
    "VOLUME_TYPE",
    "BodyLimit",
    "Credentials",
    "SignedIn",
    "TextLimit",
    "TheReview",
    "annotator_of",
    "answer_with_problems",
    "check_password",
    "file_in",
    "identity",
    "mask_of_prompts",
    "problem",
    "received_form",
    "record_download",
    "volume_response",
]
