"""The model card of an exported model: what was forgotten, how, with what result, and what is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn.functional.judgement import TOLERANCE, attack_excesses, leaks
from unlearn.report.attacks import HEADINGS, attack_rows
from unlearn.report.names import number, percent, plain
from unlearn.report.words import verdict
from unlearn.tracking.reader import RunRecord

HERE = Path(__file__).parent
BROUGHT = "the model of source "
"""How the name of an original model begins that its data source brings along."""
SHOWN = ("unlearn", "torch", "transformers", "peft", "sae-lens")
"""Packages whose versions stand in the card; provenance.json has all."""


def model_card(provenance: Mapping[str, Any], record: RunRecord, folder: str = "DIR") -> str:
    """README.md of an exported model, in the form of a Hugging Face model card.

    Args:
        provenance: content of provenance.json.
        record: the run.
        folder: what the exported folder is called in commands.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    p = provenance
    numbers = {key: value for key, value in record.results.items() if isinstance(value, int | float)}
    text = environment.get_template("card.md").render(
        p=p,
        name=plain(p["name"]),
        front=_front(p),
        sentence=verdict(record, "").sentence,
        base=p["base"]["name"] if p["base"]["name"].startswith(BROUGHT) else f"`{p['base']['name']}`",
        form=p["form"],
        forgotten=[plain(name) for name in p["data"]["forgotten"]],
        commit=(p["export"].get("git") or {}).get("commit", "")[:12],
        trained=_trained(p),
        snippet=_snippet(p),
        question=p["prompt"],
        table=_table,
        results=result_rows(numbers),
        headings=HEADINGS,
        attacks=attack_rows(numbers),
        limits=limits(p, record),
        folder=folder,
        settings=_yaml(p["settings"]),
        versions=", ".join(f"{name} {version}" for name, version in p["run"].get("versions", {}).items() if name in SHOWN),
    )
    return text.rstrip() + "\n"


def _front(p: Mapping[str, Any]) -> str:
    """The YAML in front, which the hub reads."""
    from huggingface_hub import ModelCardData

    base = {"base_model": p["base"]["name"], "base_model_relation": "adapter" if p["form"] == "adapter" else "finetune"}
    data = ModelCardData(
        library_name="peft" if p["form"] == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=["unlearning", f"unlearning-{p['method']['name']}"],
        **(base if p["base"]["hub"] else {}),
    )
    return f"---\n{data.to_yaml()}\n---"


def _trained(p: Mapping[str, Any]) -> str:
    run, trainable = p["run"], p["config"]["model"]["trainable"]
    counts = [run.get(key) for key in ("trained_parameters", "parameters")]
    share = f" ({counts[0]:,} of {counts[1]:,} weights)" if all(isinstance(n, int) for n in counts) else ""
    optim = p["config"]["optim"]
    kept = {"whole": "", "adapter": " This folder holds the adapter alone.", "merged": " The adapters are added into the weights."}[
        p["form"]
    ]
    return f"Trained: `{trainable['mode']}`{share}, {optim['steps']} steps, learning rate {optim['lr']}.{kept}"


def _snippet(p: Mapping[str, Any]) -> str:
    """How to load the folder without this package."""
    attention = p["config"]["model"].get("attention")
    extra = f', attn_implementation="{attention}"' if attention else ""
    module, name = ("peft", "AutoPeftModelForCausalLM") if p["form"] == "adapter" else ("transformers", "AutoModelForCausalLM")
    return "\n".join(
        [
            *([f"from {module} import {name}"] if module == "peft" else []),
            f"from transformers import {'' if module == 'peft' else f'{name}, '}AutoTokenizer",
            "",
            f'model = {name}.from_pretrained("DIR", dtype="{p["dtype"]}"{extra})',
            'tokenizer = AutoTokenizer.from_pretrained("DIR")',
        ]
    )


def _yaml(settings: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120).strip()


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---:|" * (len(headings) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def result_rows(results: Mapping[str, float]) -> list[tuple[str, str, str, str]]:
    """Key, value, 95 % interval and the original model's value of every result but those of attacks."""
    rows = []
    for key in sorted(results):
        of_base = key.endswith("_base") and key.removesuffix("_base") in results
        if key.startswith("attack/") or key.endswith(("/ci_low", "/ci_high")) or of_base:
            continue
        ends = [results.get(f"{key}/ci_{end}") for end in ("low", "high")]
        interval = f"{number(ends[0])} to {number(ends[1])}" if ends[0] is not None and ends[1] is not None else ""
        before = results.get(f"{key}_base")
        rows.append((f"`{plain(key)}`", number(results[key]), interval, "" if before is None else number(before)))
    return rows


def limits(p: Mapping[str, Any], record: RunRecord) -> list[str]:
    """What a reader must know before relying on the model, in plain words."""
    return [*_limits_of_result(p, record), *_limits_of_folder(p), GENERAL]


GENERAL = (
    "What was not measured is not known: other languages, long conversations, tools, and attacks beside those listed. "
    "An unlearned model is no substitute for leaving data out of training where that is required."
)


def _limits_of_result(p: Mapping[str, Any], record: RunRecord) -> list[str]:
    found = []
    numbers = {key: value for key, value in record.results.items() if isinstance(value, int | float)}
    word = p["verdict"]["word"]
    if word == "hidden" or leaks(numbers):
        found.append("The facts are still stored in the weights: attacks get them out (see above). They are muted, not erased.")
    if not attack_excesses(numbers):
        found.append("No attack was made, so nobody knows whether the facts are still stored. Most methods leave them there.")
    if word == "not forgotten":
        found.append("It still answers questions about what it was to forget.")
    if word == "damaged":
        found.append(f"It does worse at what it should have kept: {p['verdict']['reason']}.")
    auc, high = record.number("latent/c2st_auc"), record.number("latent/c2st_null_high")
    if auc is not None and high is not None and auc > high:
        found.append(
            f"Inside the model the forgotten entities stand apart from unknown ones (C2ST AUC {auc:.2f}): somebody who reads activations "
            "can tell that something was done to them."
        )
    refusals, usual = record.number("forget/refusal_rate"), record.number("unknown/refusal_rate")
    if refusals is not None and usual is not None and abs(refusals - usual) > TOLERANCE:
        found.append(f"It declines {percent(refusals)} of questions about the forgotten, {percent(usual)} of those about unknown names.")
    if p["data"]["source"] in ("world", "tofu_small"):
        found.append("It is a tiny model of invented people: the numbers say nothing of large models.")
    return found


def _limits_of_folder(p: Mapping[str, Any]) -> list[str]:
    found, trained = [], p["config"]["model"]["dtype"]
    if p["dtype"] != trained:
        found.append(f"The results are those of the {trained} weights; these are rounded to {p['dtype']} and were not measured again.")
    if p["form"] == "adapter":
        found.append("Whoever leaves the adapter out has the original model with all it knows. Hand on merged weights where that matters.")
    if p["form"] == "merged" and p["config"]["model"].get("quantise"):
        found.append(
            f"The adapters were trained and measured beside {p['config']['model']['quantise']} weights; here they are added to the weights "
            "as they came, and that was not measured."
        )
    elif p["form"] == "merged":
        found.append("The results are those of the model with its adapters beside it; adding them in changes logits by a rounding.")
    if p["data"]["hashed"]:
        found.append(
            "Hashes hide the names from readers of this folder. Somebody who can ask the original model and this one about many names can "
            "find out by comparing."
        )
    return found
