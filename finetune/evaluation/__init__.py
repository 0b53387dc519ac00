"""What a model is worth: metrics with intervals, calibration, baselines. numpy here; scikit-learn and scipy only when called."""

from finetune.evaluation.baselines import majority_baseline, tfidf_baseline
from finetune.evaluation.calibration import calibration_report, expected_calibration_error, fit_temperature, softmax
from finetune.evaluation.metrics import check_metrics, evaluate_classification, higher_is_better, score

__all__ = [
    "calibration_report",
    "check_metrics",
    "evaluate_classification",
    "expected_calibration_error",
    "fit_temperature",
    "higher_is_better",
    "majority_baseline",
    "score",
    "softmax",
    "tfidf_baseline",
]
