"""A fair comparison: every method tuned with the same budget on validation rows, then measured on test rows with several seeds.

The lifecycle, with the place of every part::

    compare(plan)
        for each method, in up to ``jobs`` processes; one that fails does not stop the others:
            tune: a sweep over its space on the validation rows     tune, sweep    -> tuning/METHOD.json
            for each seed: run, attack, read                        measure        -> METHOD-seedN.json
        means, intervals, paired tests, ranks, Pareto front         conclude       -> summary.json

The files of the ledger are the state: what has its file is not made again, whatever has become of the runs.
"""

from unlearn.comparison.plan import Plan, read_plan
from unlearn.comparison.work import compare

__all__ = ["Plan", "compare", "read_plan"]
