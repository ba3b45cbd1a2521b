"""Ask a trained model: load its folder, ask it in one of its modes, for texts or for rows."""

from __future__ import annotations

from saywhy.predict.folder import Classifier, check_mode, load, read_task, recommended_in
from saywhy.predict.modes import PRUNE, answer, calibrated, confidence, mean, too_long
from saywhy.predict.stream import answer_file, answer_source, check_output
from saywhy.predict.texts import SHOW_PROGRESS_FROM, TextClassifier, columns_of, list_texts, open_classifier, text_row

__all__ = [
    "PRUNE",
    "SHOW_PROGRESS_FROM",
    "Classifier",
    "TextClassifier",
    "answer",
    "answer_file",
    "answer_source",
    "calibrated",
    "check_mode",
    "check_output",
    "columns_of",
    "confidence",
    "list_texts",
    "load",
    "mean",
    "open_classifier",
    "read_task",
    "recommended_in",
    "text_row",
    "too_long",
]
