"""torchmetrics classes over the pure functions.

Each has ``key``, the last part of its name in the results (``forget/accuracy``), and ``higher_is_better``, said of a model that should
know the answers, or, of forget quality and the distance between mixes, of one that should have forgotten them; None where neither end is
good. States are summed, or gathered, over processes.
"""

from unlearn.metrics.answers import AliasMatch, AnswerAccuracy, RefusalRate, Rouge1, RougeL
from unlearn.metrics.choice import ChoiceAccuracy
from unlearn.metrics.fluency import NgramEntropy, Repetition
from unlearn.metrics.likelihood import ExactMemorisation, ExtractionStrength, Perplexity, Probability, TruthRatio
from unlearn.metrics.membership import MembershipAuc, MembershipRelDiff, PrivLeak
from unlearn.metrics.mix import AnswerMix, AnswerMixDistance
from unlearn.metrics.quality import ForgetQuality, ForgetQualityStatistic, ModelUtility
from unlearn.metrics.rows import RowMean

__all__ = [
    "AliasMatch",
    "AnswerAccuracy",
    "AnswerMix",
    "AnswerMixDistance",
    "ChoiceAccuracy",
    "ExactMemorisation",
    "ExtractionStrength",
    "ForgetQuality",
    "ForgetQualityStatistic",
    "MembershipAuc",
    "MembershipRelDiff",
    "ModelUtility",
    "NgramEntropy",
    "Perplexity",
    "PrivLeak",
    "Probability",
    "RefusalRate",
    "Repetition",
    "Rouge1",
    "RougeL",
    "RowMean",
    "TruthRatio",
]
