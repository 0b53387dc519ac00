"""What a model is worth: metrics with intervals, calibration, baselines. numpy here; scikit-learn and scipy only when called."""

from finetune.evaluation import multi_label, next_token, regression, single_label
from finetune.evaluation.baselines import baselines
from finetune.evaluation.calibration import calibration_report, decision_calibration_report, softmax
from finetune.evaluation.conformal import interval_report
from finetune.evaluation.spec import Evaluation
from finetune.evaluation.unigram import unigram_baselines

EVALUATIONS: dict[str, Evaluation] = {
    "single_label": Evaluation(
        metrics=single_label.METRICS,
        score=single_label.score,
        higher_is_better=single_label.higher_is_better,
        check_metrics=single_label.check_metrics,
        measure=single_label.measure,
        evaluate=single_label.evaluate,
        calibrate=calibration_report,
        agreement=single_label.agreement,
        drop=single_label.drop,
        hardness=single_label.hardness,
    ),
    "multi_label": Evaluation(
        metrics=multi_label.METRICS,
        score=multi_label.score,
        higher_is_better=multi_label.higher_is_better,
        check_metrics=multi_label.check_metrics,
        measure=multi_label.measure,
        evaluate=multi_label.evaluate,
        calibrate=decision_calibration_report,
        agreement=multi_label.agreement,
        drop=multi_label.drop,
        hardness=multi_label.hardness,
    ),
    "regression": Evaluation(
        metrics=regression.METRICS,
        score=regression.score,
        higher_is_better=regression.higher_is_better,
        check_metrics=regression.check_metrics,
        measure=regression.measure,
        evaluate=regression.evaluate,
        calibrate=interval_report,
        agreement=regression.agreement,
        drop=regression.drop,
        hardness=regression.hardness,
    ),
    "next_token": Evaluation(
        metrics=next_token.METRICS,
        score=next_token.score,
        higher_is_better=next_token.higher_is_better,
        check_metrics=next_token.check_metrics,
        measure=next_token.measure,
        evaluate=next_token.evaluate,
        calibrate=None,
        agreement=next_token.agreement,
        drop=next_token.drop,
        hardness=next_token.hardness,
    ),
}
"""By the name of the target."""

__all__ = ["EVALUATIONS", "Evaluation", "baselines", "softmax", "unigram_baselines"]
