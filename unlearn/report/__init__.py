"""Tables, figures and reports from finished runs.

Reads run directories only: whatever a report says stands in ``results.json``, ``metrics.jsonl``, ``samples.jsonl``, ``activations.npz``,
``attacks/*.json``, ``config.yaml`` or ``manifest.json`` of a run.
"""

from unlearn.report.table import comparison_table
from unlearn.report.write import write_report

__all__ = ["comparison_table", "write_report"]
