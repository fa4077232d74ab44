from .admission import Admission, BusyError
from .ct_sources import receive_volume
from .pipeline import GridSlab, Predictor, attend, enough_windows, plan_windows
from .prediction import OrganSize, Prediction
from .scorer import FILE_AXIS, SERVICE_VERSION, Scorer, Task

__all__ = [
    "FILE_AXIS",
    "SERVICE_VERSION",
    "Admission",
    "BusyError",
    "GridSlab",
    "OrganSize",
    "Prediction",
    "Predictor",
    "Scorer",
    "Task",
    "attend",
    "enough_windows",
    "plan_windows",
    "receive_volume",
]
