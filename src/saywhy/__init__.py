"""saywhy: small text classifiers that say why.

`load(folder)` gives a trained classifier, `ReasoningClassifier` is one for scikit-learn; everything else is reached
through the command line or the modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from saywhy.version import VERSION as __version__

if TYPE_CHECKING:
    from saywhy.estimator import ReasoningClassifier
    from saywhy.predict import open_classifier as load

__all__ = ["ReasoningClassifier", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch is heavy and most commands do without it, so it is imported when a model is asked for.
    if name == "load":
        from saywhy.predict import open_classifier

        return open_classifier
    if name == "ReasoningClassifier":
        from saywhy.estimator import ReasoningClassifier

        return ReasoningClassifier
    raise AttributeError(f"module 'saywhy' has no attribute {name!r}")
