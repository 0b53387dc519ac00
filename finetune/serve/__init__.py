"""Answers from a bundle, with the base install only: no torch, no transformers."""

from finetune.serve.files import predict_file
from finetune.serve.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor", "predict_file"]
