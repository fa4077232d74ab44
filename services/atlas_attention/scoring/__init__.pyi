from .admission import Admission, BusyError
from .ct_sources import receive_volume
from .pipeline import GridSlab, Predictor, attend, default_windows_in_flight, plan_windows
from .prediction import OrganSize, PredictionResult
from .scorer import FILE_AXIS, SERVICE_VERSION, AttentionTask, Scorer

__all__ = [
    "FILE_AXIS",
    "SERVICE_VERSION",
    "Admission",
    "AttentionTask",
    "BusyError",
    "GridSlab",
    "OrganSize",
    "PredictionResult",
    "Predictor",
    "Scorer",
    "attend",
    "default_windows_in_flight",
    "plan_windows",
    "receive_volume",
]
