"""Tables, figures and HTML from finished runs.

Reads run directories only: whatever a report says stands in ``results.json``, ``metrics.jsonl``, ``samples.jsonl``, ``activations.npz``,
``config.yaml`` or ``manifest.json`` of a run.
"""

from unlearn.report.html import write_report
from unlearn.report.table import comparison_table, markdown_table

__all__ = ["comparison_table", "markdown_table", "write_report"]
