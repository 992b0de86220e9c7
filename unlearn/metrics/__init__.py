"""torchmetrics classes over the pure functions.

Each has ``key``, the last part of its name in the results (``forget/accuracy``), and ``higher_is_better``, said of a model that should
know the answers. States are summed over processes.
"""

from unlearn.metrics.answers import AnswerAccuracy, RefusalRate, RougeL
from unlearn.metrics.likelihood import ExactMemorisation, ExtractionStrength, Perplexity, Probability, TruthRatio
from unlearn.metrics.rows import RowMean

__all__ = [
    "AnswerAccuracy",
    "ExactMemorisation",
    "ExtractionStrength",
    "Perplexity",
    "Probability",
    "RefusalRate",
    "RougeL",
    "RowMean",
    "TruthRatio",
]
