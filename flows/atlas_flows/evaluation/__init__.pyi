from .attention_regions import DetectionTable, RegionRule
from .case_measures import CaseMeasures
from .compared_masks import ComparisonScope, annotator_matrix, architecture_matrix
from .efficiency import Efficiency, WorkTime
from .error_found import ErrorFound, measure_error_found
from .false_positives import FalsePositives, false_positive_rates
from .ground_truth import GroundTruth, open_ground_truth
from .label_quality import IterationTable, LabelKind
from .paper_evaluation import (
    EvaluationScope,
    IterationSummary,
    PaperEvaluation,
    detection_table,
    efficiency_of,
    evaluate_all,
    iteration_tables,
    iterations_of,
    measure_iteration,
)
from .phantom_truth import TRUTH_FOLDER, case_errors, kinds_of_cases, truth_files
from .ranking_quality import (
    ORDINARY,
    Estimate,
    RankingEvaluation,
    dice_by_organ,
    evaluate_ranking,
)
from .rater_agreement import DiceMatrix

__all__ = [
    "ORDINARY",
    "TRUTH_FOLDER",
    "CaseMeasures",
    "ComparisonScope",
    "DetectionTable",
    "DiceMatrix",
    "Efficiency",
    "ErrorFound",
    "Estimate",
    "EvaluationScope",
    "FalsePositives",
    "GroundTruth",
    "IterationSummary",
    "IterationTable",
    "LabelKind",
    "PaperEvaluation",
    "RankingEvaluation",
    "RegionRule",
    "WorkTime",
    "annotator_matrix",
    "architecture_matrix",
    "case_errors",
    "detection_table",
    "dice_by_organ",
    "efficiency_of",
    "evaluate_all",
    "evaluate_ranking",
    "false_positive_rates",
    "iteration_tables",
    "iterations_of",
    "kinds_of_cases",
    "measure_error_found",
    "measure_iteration",
    "open_ground_truth",
    "truth_files",
]
