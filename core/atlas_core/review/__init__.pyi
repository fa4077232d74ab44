from .audit_log import AuditLog
from .backlog import Backlog, count_backlog
from .case_status import CaseAttention, CaseBrief, CaseFilter, CaseReview
from .comments import Comments
from .drafts import Drafts
from .error_taxonomy import ERROR_TYPES, ErrorType
from .filling import Portion
from .label_versions import (
    MAX_PROPOSALS,
    NO_BASE,
    KeptAsProposal,
    LabelVersions,
    NotHeld,
    StaleBase,
)
from .orphans import set_orphans_aside
from .outgoing_events import QUEUE_DRAINED, OutgoingEvent, OutgoingEvents
from .queue import OpenElsewhere, RevisionQueue
from .records import (
    FINISHED,
    MINUTES_PER_CASE,
    PENDING,
    TOP_SHARE,
    USER_NAME,
    Annotator,
    AuditEntry,
    Comment,
    Draft,
    LabelVersion,
    OpenedTasks,
    Submission,
    Task,
    TaskCounts,
    TaskState,
    Throughput,
    UserName,
    Verdict,
)
from .sign_ins import SignIn, SignIns
from .statistics import CaseSize, OrganVolumes, ReviewStatistics
from .views import TaskFilter

__all__ = [
    "ERROR_TYPES",
    "FINISHED",
    "MAX_PROPOSALS",
    "MINUTES_PER_CASE",
    "NO_BASE",
    "PENDING",
    "QUEUE_DRAINED",
    "TOP_SHARE",
    "USER_NAME",
    "Annotator",
    "AuditEntry",
    "AuditLog",
    "Backlog",
    "CaseAttention",
    "CaseBrief",
    "CaseFilter",
    "CaseReview",
    "CaseSize",
    "Comment",
    "Comments",
    "Draft",
    "Drafts",
    "ErrorType",
    "KeptAsProposal",
    "LabelVersion",
    "LabelVersions",
    "NotHeld",
    "OpenElsewhere",
    "OpenedTasks",
    "OrganVolumes",
    "OutgoingEvent",
    "OutgoingEvents",
    "Portion",
    "ReviewStatistics",
    "RevisionQueue",
    "SignIn",
    "SignIns",
    "StaleBase",
    "Submission",
    "Task",
    "TaskCounts",
    "TaskFilter",
    "TaskState",
    "Throughput",
    "UserName",
    "Verdict",
    "count_backlog",
    "set_orphans_aside",
]
