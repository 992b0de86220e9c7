"""Conversations with runs, exported folders and pairs of models; what they say is what generation and the probe say."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pexpect
import pytest
import torch

from tests.mini import PEOPLE, make_mini
from unlearn.cli import main
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.errors import ConfigError, ModelError
from unlearn.export import export
from unlearn.restore import restore
from unlearn.run import execute
from unlearn.talk import Conversation, open_conversation
from unlearn.tracking.files import read_json

ROOT = Path(__file__).parents[1]
ANN, CARLA = PEOPLE["forget"][0], PEOPLE["retain"][0]
TYPED = [f"Where was {ANN} born?", f"where was {CARLA.lower()} born?", "Where was [Zork Blue] born?", "Hello there"]
PROMPT = "› "
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mini")


@pytest.fixture(scope="module")
def mini(folder: Path) -> dict[str, Any]:
    return make_mini(folder)


def made(mini: dict[str, Any], name: str, method: dict[str, Any], *settings: str) -> Path:
    quick = ["tracking.enabled=false", "evaluation.max_new_tokens=4", *settings]
    return execute(load_config({**mini, "name": name, "method": method}, quick, plugin_schemas()))


@pytest.fixture(scope="module")
def run(mini: dict[str, Any]) -> Path:
    return made(mini, "trained", {"name": "sae_guided", "objective": "prototype"}, "optim.lr=0.01")


@pytest.fixture(scope="module")
def talk(run: Path) -> Conversation:
    return open_conversation(str(run))


def asked(talk: Conversation) -> list[Any]:
    return talk.ask([talk.read(typed) for typed in TYPED])


def same(values: Iterable[Any]) -> list[Any]:
    """Without what is asked in another spelling where the names of the data are not known."""
    return [value for typed, value in zip(TYPED, values, strict=True) if CARLA.lower() not in typed]


def test_answers_are_those_of_generation_from_the_same_prompt(run: Path, talk: Conversation, mini: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = AutoModelForCausalLM.from_pretrained(mini["model"]["path"])
    tokenizer = AutoTokenizer.from_pretrained(mini["model"]["path"])
    lm: Any = restore(run).module.lm
    for reply in asked(talk):
        ids = tokenizer(f"Question: {reply.question.text}\nAnswer:", return_tensors="pt").input_ids
        for model, side in ((before, reply.before), (lm, reply.after)):
            with torch.no_grad():
                said = model.generate(ids, max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :]
            assert side.answer == tokenizer.decode(said, skip_special_tokens=True).strip()
    assert any(reply.before.answer != reply.after.answer for reply in asked(talk))


def test_the_verdict_is_a_logistic_probe_of_the_original_model_at_the_end_of_the_name(
    talk: Conversation, run: Path, mini: dict[str, Any]
) -> None:
    assembly = restore(run)
    meter = assembly.suite.meter
    assert meter is not None
    probe = meter.probe
    for typed, reply in zip(TYPED, asked(talk), strict=True):
        if not reply.question.name:
            assert reply.before.p_unknown is None
            assert reply.after.verdict == ""
            continue
        text = f"Question: {reply.question.text}\nAnswer:"
        encoded = assembly.suite.reader.tokenizer(text, return_offsets_mapping=True)
        end = text.index(reply.question.name) + len(reply.question.name)
        place = max(i for i, (start, stop) in enumerate(encoded["offset_mapping"]) if start < end <= stop)
        hidden: list[torch.Tensor] = []
        lm: Any = assembly.module.lm
        handle = lm.model.layers[1].register_forward_hook(
            lambda m, a, out, kept=hidden: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        with torch.no_grad():
            lm(torch.tensor([encoded["input_ids"]]))
        handle.remove()
        p = probe.predict_proba(hidden[0][0, place][None].numpy())[0, 1]
        assert reply.after.p_unknown == pytest.approx(p, abs=1e-5), typed
        assert reply.after.verdict == ("unknown" if p >= 0.5 else "known")


def test_an_exported_folder_says_what_its_run_says(run: Path, talk: Conversation, tmp_path: Path) -> None:
    export(str(run), tmp_path / "out")
    again = open_conversation(str(tmp_path / "out"))
    assert again.silent == again.alone == ""
    assert again.auc == talk.auc == read_json(run / "results.json")["latent/probe_auc"]
    for one, other in zip(asked(talk), asked(again), strict=True):
        assert one.question == other.question
        for a, b in ((one.before, other.before), (one.after, other.after)):
            assert a.answer == b.answer
            assert a.p_unknown == pytest.approx(b.p_unknown, abs=1e-6)


def test_an_adapter_is_put_beside_its_original(mini: dict[str, Any], tmp_path: Path) -> None:
    run = made(mini, "lora", {"name": "npo"}, "model.trainable.mode=lora", "optim.lr=0.02")
    export(str(run), tmp_path / "adapter", form="adapter")
    first, again = open_conversation(str(run)), open_conversation(str(tmp_path / "adapter"))
    assert asked(first) == asked(again)


def test_a_folder_that_travelled_names_its_base_or_is_told(run: Path, talk: Conversation, mini: dict[str, Any], tmp_path: Path) -> None:
    export(str(run), tmp_path / "out", hash_names=True)
    alone = open_conversation(str(tmp_path / "out"))
    assert alone.before is None
    assert "name it by --base" in alone.alone
    assert "the names are hashed" in alone.silent
    assert same(r.after.answer for r in asked(alone)) == same(r.after.answer for r in asked(talk))
    both = open_conversation(str(tmp_path / "out"), base=mini["model"]["path"])
    assert same(r.before.answer for r in asked(both)) == same(r.before.answer for r in asked(talk))


def test_any_pair_of_models_can_be_asked_with_or_without_an_sae(
    run: Path, talk: Conversation, mini: dict[str, Any], tmp_path: Path
) -> None:
    export(str(run), tmp_path / "out")
    for name in ("provenance.json", "local.json"):
        (tmp_path / "out" / name).unlink()
    model, base = str(tmp_path / "out"), mini["model"]["path"]
    plain = open_conversation(model, base, max_new_tokens=4)
    assert "there is no SAE" in plain.silent
    assert same((r.before.answer, r.after.answer) for r in asked(plain)) == same((r.before.answer, r.after.answer) for r in asked(talk))
    assert all(r.after.p_unknown is None for r in asked(plain))
    words = ["data.source=jsonl", f"data.path={mini['data']['path']}", "data.refusals=[unknown]", f"sae.path={mini['sae']['path']}"]
    full = open_conversation(model, base, overrides=[*words, "latents.top_k=4", f"cache={mini['cache']}"], max_new_tokens=4)
    for one, other in zip(asked(talk), asked(full), strict=True):
        assert one.after.p_unknown == pytest.approx(other.after.p_unknown, abs=1e-5)


def test_an_instruction_tuned_model_is_asked_in_its_chat_template(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.architectures import SHAPES, Hub, redirected

    with redirected(Hub(tmp_path, registry=False).need("gemma-2-2b-it")):
        name = SHAPES["gemma-2-2b-it"].repo
        talk = open_conversation(name, max_new_tokens=3)
        assert talk.before is None
        lm, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
        question = "Where was Ann Lee born?"
        text = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            said = lm.generate(ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :]
        assert talk.ask([talk.read(question)])[0].after.answer == tokenizer.decode(said, skip_special_tokens=True).strip()


def test_a_model_of_another_shape_is_no_original(run: Path, tmp_path: Path) -> None:
    from tests.tiny import tiny_llama, tiny_tokenizer

    tiny_llama(layers=2).save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    export(str(run), tmp_path / "out")
    with pytest.raises(ModelError, match=r"--base must be the model that was changed \(blocks: 4\); found 2"):
        open_conversation(str(tmp_path / "out"), base=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="--base must not be given for a run"):
        open_conversation(str(run), base=str(tmp_path / "other"))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "120")

    def call(*words: object) -> SimpleNamespace:
        with pytest.raises(SystemExit) as ending:
            main([str(word) for word in words])
        said = capsys.readouterr()
        return SimpleNamespace(code=ending.value.code or 0, out=said.out, err=said.err)

    return call


def test_a_file_of_questions_becomes_a_table_or_json_lines(run: Path, talk: Conversation, command: Any, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("# a comment\n" + "\n\n".join(TYPED) + "\n", encoding="utf-8")
    done = command("chat", run, "--prompts", tmp_path / "q.txt", "--json")
    assert done.code == 0
    records = [json.loads(line) for line in done.out.splitlines()]
    for record, reply in zip(records, asked(talk), strict=True):
        assert record["question"] == reply.question.text
        assert record["after"] == {"answer": reply.after.answer, "verdict": reply.after.verdict or None, "p_unknown": reply.after.p_unknown}
        assert record["before"]["answer"] == reply.before.answer
    assert [record["data"] for record in records] == ["forgotten", "kept", None, None]
    table = command("chat", run, "--prompts", tmp_path / "q.txt").out
    for reply in asked(talk):
        assert reply.question.text in table
        if reply.after.p_unknown is not None:
            assert f"{reply.after.p_unknown:.2f}" in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json"], "--json needs --prompts FILE"),
        (["--prompts", "missing.txt"], "--prompts must be a readable UTF-8 text file"),
        (["--prompts", "empty.txt"], "--prompts must hold questions, one a line; found none"),
    ],
)
def test_wrong_options_are_refused(
    run: Path, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    done = command("chat", run, *words)
    assert done.code == 2
    assert message in done.err


def typed_into(run: Path, lines: list[str], leave: Callable[[pexpect.spawn], None]) -> tuple[int, str]:
    """A terminal in which ``lines`` are typed, each when readline waits for keys, then ``leave``; exit status and everything shown."""
    shown = io.StringIO()
    keep = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "PYTHONUTF8": "1"}
    terminal = pexpect.spawn(
        sys.executable, ["-m", "unlearn", "chat", str(run)], env=keep, dimensions=(40, 100), timeout=900, encoding="utf-8"
    )
    terminal.logfile_read = shown
    try:
        for line in [*lines, None]:
            terminal.expect_exact(PROMPT)
            if find_spec("readline"):  # else input() itself reads, and nothing is lost
                assert terminal.waitnoecho(600)  # a key that comes before that would go to the terminal, not to readline
            if line is None:
                leave(terminal)
            else:
                terminal.sendline(line)
        terminal.expect(pexpect.EOF)
        terminal.wait()
    finally:
        terminal.close(force=True)
    assert terminal.exitstatus is not None, shown.getvalue()[-2000:]
    return terminal.exitstatus, shown.getvalue()


@pytest.mark.parametrize("key", ["ctrl-d", "ctrl-c"])
def test_the_terminal_greets_answers_and_leaves(run: Path, key: str) -> None:
    full = key == "ctrl-d"
    leave = pexpect.spawn.sendeof if full else pexpect.spawn.sendintr
    code, shown = typed_into(run, ["1", "Where was [Zork Blue] born?", "Hello", "?", "more"] if full else [], leave)
    assert code == 0, shown[-2000:]
    assert "Traceback" not in shown
    assert f"{ANN}" in shown
    assert "forgotten" in shown
    if full:
        assert "before" in shown
        assert "after" in shown
        assert "P(unknown)" in shown
        assert "Zork Blue" in shown
        assert "mark one with [brackets]" in shown
        assert "asks an example" in shown


def test_an_intervention_is_talked_to_in_its_run(mini: dict[str, Any]) -> None:
    run = made(mini, "clamp", {"name": "sae_clamp", "retain_threshold": 1.0, "multiplier": 100.0})
    talk = open_conversation(str(run))
    assert any(reply.before.answer != reply.after.answer for reply in asked(talk))
    shutil.rmtree(run)
