"""Answers from a bundle, with the base install only: no torch, no transformers."""

from finetune.serve.answers import Answer, MultiLabelPrediction, Prediction, RegressionPrediction
from finetune.serve.files import Outcome, predict_file, predict_images, stream_images
from finetune.serve.generator import Continuation, Generation, Generator
from finetune.serve.predictor import Predictor

__all__ = [
    "Answer", "Continuation", "Generation", "Generator", "MultiLabelPrediction", "Outcome", "Prediction", "Predictor",
    "RegressionPrediction", "predict_file", "predict_images", "stream_images",
]  # fmt: skip
