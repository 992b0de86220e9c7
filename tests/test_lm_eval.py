"""An exported folder under lm-eval, with a task of its own on this disk: the accuracy is the one that is counted by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.mini import make_mini
from tests.toys import ANSWERS, toy_data
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.export import export
from unlearn.run import execute

TASK = """
task: people
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: right
target_delimiter: " "
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""


def by_hand(folder: Path, rows: list[dict[str, Any]]) -> float:
    """Share of rows whose right choice has the largest sum of log-probabilities after the question."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lm, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    hits = 0
    for row in rows:
        prompt = f"Question: {row['question']}\nAnswer:"
        start, sums = len(tokenizer(prompt).input_ids), []
        for choice in row["choices"]:
            ids = torch.tensor([tokenizer(f"{prompt} {choice}").input_ids])
            with torch.no_grad():
                log_probs = lm(ids).logits[0].log_softmax(-1)
            sums.append(sum(float(log_probs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])))
        hits += sums.index(max(sums)) == row["right"]
    return hits / len(rows)


@pytest.mark.slow
def test_lm_eval_gives_the_accuracy_that_is_counted_by_hand(tmp_path: Path) -> None:
    mini: dict[str, Any] = make_mini(tmp_path)
    quick = ["tracking.enabled=false", "evaluation.bootstrap=0", "evaluation.max_new_tokens=2"]
    run = execute(load_config({**mini, "method": {"name": "grad_diff"}}, quick, plugin_schemas()))
    out = export(str(run), tmp_path / "out").path
    data = toy_data()
    known = [row for name in ("forget", "retain", "retain_unseen") for row in data.evaluation[name]]
    rows = [{"question": row.prompt, "choices": list(ANSWERS), "right": ANSWERS.index(row.answer)} for row in known]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "tasks" / "people.yaml").write_text(TASK.format(data=tmp_path / "rows.json"), encoding="utf-8")
    words = ["--model", "hf", "--model_args", f"pretrained={out},dtype=float32", "--device", "cpu", "--batch_size", "8"]
    words += ["--tasks", "people", "--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "results")]
    homes = {"HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_CACHE": str(tmp_path / "hf" / "datasets")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-m", "lm_eval", *words],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **homes, **offline}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    written = next((tmp_path / "results").rglob("results_*.json"))
    found = json.loads(written.read_text())["results"]["people"]
    expected = by_hand(out, rows)
    assert 0 < expected < 1, "nothing could be told apart"
    assert found["acc,none"] == pytest.approx(expected, abs=1e-12)
    assert found.get("sample_len", len(rows)) == len(rows)
