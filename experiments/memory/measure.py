"""Peak memory and time of real training steps, beside what was estimated from shapes alone.

    python experiments/memory/measure.py            # every case; writes results/memory.json
    python experiments/memory/measure.py NAME...    # some

A case is an architecture with random weights, a mode of training and a method on rows of made-up words, trained by Lightning's Trainer as
a run is. *Measured* is what PyTorch's allocator has given out at its peak (its own record, through the profiler); *resident* is how far the
resident memory of the process rises over what it is before models are made.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STEPS = 3
WORKER, SECOND = "--worker", "second step"
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """``model``: name in ``MODELS``; ``words``: keys of the configuration; rows of a batch and tokens of a row; devices."""

    model: str
    words: tuple[str, ...]
    rows: int = 8
    tokens: int = 64
    answer: int = 16
    world: int = 1
    sae: tuple[str, int] | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)


def model_config(name: str, **options: Any) -> Any:
    """Hugging Face configuration of a small model of a true architecture."""
    from transformers import Gemma2Config, GPT2Config, LlamaConfig

    common = {"vocab_size": 4096, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    wide = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2}
    if name == "gpt2":
        quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        shape = {"n_embd": 256, "n_layer": 4, "n_head": 8, "n_positions": common.pop("max_position_embeddings")}
        return GPT2Config(**{**common, **shape, **quiet, **options})
    if name == "gemma2":
        own = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64, "attn_implementation": "eager"}
        return Gemma2Config(**{**common, **wide, **own, **options})
    return LlamaConfig(**{**common, **wide, **options})


CASES: dict[str, Case] = {
    "llama_blocks_sae_guided": Case("llama", ("method.name=sae_guided",), sae=("topk", 4096)),
    "llama_full_grad_diff": Case("llama", ("method.name=grad_diff", "model.trainable.mode=full")),
    "llama_lora_npo": Case("llama", ("method.name=npo", "model.trainable.mode=lora", "model.lora.rank=8")),
    "llama_lora_sae_guided_bf16": Case(
        "llama", ("method.name=sae_guided", "model.trainable.mode=lora", "model.dtype=bfloat16"), sae=("jumprelu", 4096)
    ),
    "llama_modules_rmu": Case("llama", ("method.name=rmu",), rows=16),
    "llama_blocks_mixed": Case("llama", ("method.name=grad_diff", "trainer.precision=bf16-mixed")),
    "llama_accumulate": Case("llama", ("method.name=grad_diff", "model.trainable.mode=full", "trainer.accumulate=2"), rows=4),
    "llama_long_rows": Case("llama", ("method.name=grad_diff",), rows=2, tokens=256),
    "gemma2_blocks_sae_guided": Case("gemma2", ("method.name=sae_guided",), sae=("jumprelu", 8192)),
    "gemma2_full_kl": Case("gemma2", ("method.name=kl_min", "model.trainable.mode=full")),
    "gemma2_lora_sae_guided": Case("gemma2", ("method.name=sae_guided", "model.trainable.mode=lora"), sae=("jumprelu", 8192)),
    "gemma2_early_exit": Case("gemma2", ("method.name=rmu", "method.layer=2"), rows=16),
    "gpt2_blocks_sae_guided": Case("gpt2", ("method.name=sae_guided",), sae=("standard", 4096)),
    "gpt2_full_dpo": Case("gpt2", ("method.name=dpo", "model.trainable.mode=full")),
    "gpt2_modules_grad_diff": Case("gpt2", ("method.name=grad_diff", "model.trainable.mode=modules", "model.trainable.modules=[mlp]")),
    "llama_wrapper_lat": Case("llama", ("method.name=lat", "method.inner.name=npo")),
    "llama_ddp": Case("llama", ("method.name=grad_diff", "trainer.devices=2"), world=2),
    "llama_fsdp2": Case("llama", ("method.name=grad_diff", "trainer.devices=2", "trainer.strategy=fsdp2"), rows=4, world=2),
    "llama_fsdp2_full": Case(
        "llama", ("method.name=npo", "model.trainable.mode=full", "trainer.devices=2", "trainer.strategy=fsdp2"), rows=2, world=2
    ),
    "llama_crisp": Case("llama", ("method.name=crisp",), sae=("topk", 4096)),
}


def configuration(case: Case) -> Any:
    """The run of a case."""
    from unlearn.config.load import load_config
    from unlearn.config.plugins import plugin_schemas

    batch = dict.fromkeys(("forget", "retain", "known", "unknown"), case.rows)
    accumulate = next((int(w.split("=")[1]) for w in case.words if w.startswith("trainer.accumulate=")), 1)
    base = {
        "name": "memory",
        "data": {"source": "world", "batch": {s: n * case.world * accumulate for s, n in batch.items()}},
        "optim": {"steps": STEPS},
        "trainer": {"accelerator": "cpu", "progress_bar": False},
        "latents": {"bank_rows": 64},
        "evaluation": {"batch_size": case.rows},
    }
    return load_config(base, case.words, plugin_schemas())


def _sizes(case: Case) -> dict[str, Any]:
    from unlearn.estimate.stand_in import Size

    return {s: Size(rows=case.rows, tokens=case.tokens, answer=case.answer) for s in ("forget", "retain", "known", "unknown")}


def estimated(case: Case, on_gpu: bool = False) -> Any:
    """``unlearn.estimate.memory.estimate`` of a case."""
    from unlearn.estimate.memory import estimate
    from unlearn.estimate.stand_in import Size, blank_sae

    lm_config = model_config(case.model, **case.model_options)
    layer = lm_config.num_hidden_layers // 2
    sae = None if case.sae is None else blank_sae(lm_config.hidden_size, case.sae[1], case.sae[0], layer)
    size = Size(rows=0, tokens=case.tokens, answer=case.answer)
    return estimate(configuration(case), lm_config, sae=sae, world=case.world, on_gpu=on_gpu, size=size)


def objects(case: Case, folder: Path, device: str = "cpu") -> tuple[Any, dict[str, Any]]:
    """The module of a case on ``device``, with real (random) weights, banks and references, and its batches."""
    import torch
    from transformers import AutoModelForCausalLM

    from unlearn.assembly import select_weights
    from unlearn.estimate.stand_in import batches_of, blank_sae, data_of, reader_of
    from unlearn.latents.banks import build_banks
    from unlearn.latents.selection import select_latents
    from unlearn.methods.base import MethodContext
    from unlearn.models.reference import ReferenceStore
    from unlearn.models.sae import FrozenSAE
    from unlearn.module import UnlearningModule
    from unlearn.registry import find

    config, lm_config = configuration(case), model_config(case.model, **case.model_options)
    torch.manual_seed(0)
    with torch.device(device):
        lm = AutoModelForCausalLM.from_config(lm_config, dtype=getattr(torch, config.model.dtype)).requires_grad_(False).eval()
    data = data_of(_sizes(case))
    reader = reader_of(512, case.rows)
    batches = {s: type(batch)(*(t.to(device) for t in batch)) for s, batch in batches_of(data, reader).items()}
    layer, sae, banks, selection = lm_config.num_hidden_layers // 2, None, None, None
    if case.sae is not None:
        shape = blank_sae(lm_config.hidden_size, case.sae[1], case.sae[0], layer)
        made = shape.sae.to_empty(device=device)
        for parameter in made.parameters():
            parameter.data = 0.05 * torch.randn(parameter.shape, device=device)
        sae = FrozenSAE(made, layer)
        sides = [[batches[s]] for s in ("known", "unknown", "forget")]
        banks = build_banks(lm, *sides, sae)  # type: ignore[arg-type]
        selection = select_latents(sae, banks, config.latents, config.seed)
    cls = find("method", config.method.name).load()
    needed = cls.reference_layers(config.method, layer, lm_config.num_hidden_layers)
    reference = ReferenceStore.build(lm, list(batches.values()), layers=tuple({layer, *needed}), path=folder / "reference")
    context = MethodContext(
        n_blocks=lm_config.num_hidden_layers, hook_layer=layer, sae=sae, banks=banks, selection=selection,
        reference=reference, data=data, reader=reader, seed=config.seed,
    )  # fmt: skip
    method = cls(config.method, context.only(cls.required(config.method))).to(device)
    lm, _ = select_weights(lm, method, config.model)
    method.setup(lm)
    method.to(device)
    return UnlearningModule(lm, method, config.optim), batches


def live_bytes(*modules: Any) -> int:
    """Bytes of the tensors that modules hold, each storage once."""
    found: dict[int, int] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(found.values())


def measured(case: Case, folder: Path, steps: int = STEPS) -> dict[str, Any]:
    """Peak memory in bytes, and seconds and CPU seconds of a step, of real training in this process."""
    import sae_lens  # noqa: F401  what is imported later would count as resident memory
    import torch
    import transformers.models.auto.modeling_auto  # noqa: F401
    from lightning.pytorch import Callback, LightningDataModule
    from torch.profiler import ProfilerActivity, profile, record_function

    from unlearn.callbacks.cost import PeakMemory
    from unlearn.launch import make_trainer, trainer_settings

    torch.set_num_threads(1)
    memory = PeakMemory()
    memory.settle()
    memory.start()
    module, batches = objects(case, folder)
    memory.settle()
    config = configuration(case)
    sae = [module.method.context.sae.sae] if module.method.context.sae is not None else []
    held = live_bytes(module.lm, module.method, *sae)

    class Clock(Callback):
        seconds: list[float] = []
        cpu: list[float] = []

        def on_train_batch_start(self, *args: Any) -> None:
            self.seconds.append(-time.perf_counter())
            self.cpu.append(-time.process_time())

        def on_train_batch_end(self, *args: Any) -> None:
            self.seconds[-1] += time.perf_counter()
            self.cpu[-1] += time.process_time()

    class Mark(Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == config.trainer.accumulate:
                with record_function(SECOND):
                    pass

    def fit(count: int, callbacks: list[Callback]) -> None:
        active = {s: batches[s] for s in module.method.streams_of(module.method.config)}
        loader = torch.utils.data.DataLoader([active] * (count * config.trainer.accumulate), batch_size=None)  # type: ignore[arg-type]

        class Same(LightningDataModule):
            def train_dataloader(self) -> Any:
                return loader

            def micro_batches(self, step: int) -> list[Any]:
                return [active] * config.trainer.accumulate

        optim = replace(config.optim, steps=count)
        make_trainer(config.trainer, optim, callbacks, [], trainer_settings(config.trainer)).fit(module, datamodule=Same())

    before = memory.before
    clock = Clock()
    if steps:
        memory.start()
        fit(steps, [clock])
    risen = (memory.stop() - before) * MIB if steps else float("nan")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        fit(2, [Mark()])
    peak = peak_after(SECOND, recorded.profiler.kineto_results.events())
    seconds, cpu = clock.seconds[1:] or [float("nan")], clock.cpu[1:] or [float("nan")]
    return {
        "peak": held + peak, "resident": risen, "held": held,
        "micro_seconds": statistics.median(seconds), "micro_cpu_seconds": statistics.median(cpu),
    }  # fmt: skip


def peak_after(mark: str, events: Sequence[Any]) -> int:
    """Highest sum of all allocations and releases so far, in bytes, from the event called ``mark`` on."""
    start = next(e.start_ns() for e in events if e.name() == mark)
    total = peak = 0
    for when, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        total += size
        peak = max(peak, total) if when >= start else peak
    return peak


def compare(name: str) -> dict[str, Any]:
    """One case, measured and estimated."""
    from unlearn.estimate.speed import Rates, step_seconds

    case = CASES[name]
    found = _launched(name) if case.world > 1 else _measured(case)
    guess = estimated(case)
    inside = sum(guess.device.values())
    rates = Rates.measure("cpu", configuration(case).model.dtype, time.process_time)
    seconds, step = step_seconds(guess.rehearsal, rates), found["micro_cpu_seconds"] * configuration(case).trainer.accumulate
    return {
        "measured_mib": found["peak"] / MIB,
        "resident_mib": found["resident"] / MIB,
        "estimated_mib": inside / MIB,
        "error": inside / found["peak"] - 1,
        "parts_mib": {k: v / MIB for k, v in guess.device.items() if v},
        "step_cpu_seconds": step,
        "estimated_seconds": seconds,
        "time_error": seconds / step - 1,
    }


def _measured(case: Case) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return measured(case, Path(folder))


def _launched(name: str) -> dict[str, Any]:
    """What the first of several processes measures."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(CASES[name].world)]
        done = subprocess.run([sys.executable, *launcher, str(HERE / "measure.py"), WORKER, name, str(out)], capture_output=True, text=True)
        if not out.is_file():
            raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found


def _work(name: str, out: str) -> None:
    """One of several processes."""
    found = _measured(CASES[name])
    if os.environ["RANK"] == "0":
        Path(out).write_text(json.dumps(found), encoding="utf-8")


def main(names: Sequence[str]) -> None:
    """Measure every case, or those named, in a process in which freed memory goes back to the system at once."""
    quiet = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "OMP_NUM_THREADS": "1"}
    if not quiet.items() <= os.environ.items():
        raise SystemExit(subprocess.call([sys.executable, __file__, *names], env={**os.environ, **quiet}))
    if names[:1] == [WORKER]:
        _work(*names[1:])
        return
    file = HERE / "results" / "memory.json"
    results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.parent.mkdir(exist_ok=True)
    for name in names or CASES:
        r = results[name] = compare(name)
        sys.stdout.write(
            f"{name:28} measured {r['measured_mib']:7.1f}  resident {r['resident_mib']:7.1f}  estimated {r['estimated_mib']:7.1f} MiB  "
            f"{r['error']:+7.1%}   step {r['step_cpu_seconds']:.2f} s, estimated {r['estimated_seconds']:.2f} s {r['time_error']:+7.1%}\n"
        )
        sys.stdout.flush()
        file.write_text(json.dumps({key: results[key] for key in CASES if key in results}, indent=1) + "\n", encoding="utf-8")
    page = HERE / "README.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), results), encoding="utf-8")


def filled(page: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The study's page with its table made anew."""
    return re.sub(r"(<!-- table -->\n).*?(<!-- /table -->)", lambda match: f"{match[1]}{table(results)}\n{match[2]}", page, flags=re.DOTALL)


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table of the cases, and the largest and median errors."""
    lines = ["| case | measured, MiB | resident, MiB | estimated, MiB | error | step, CPU s | estimated, s | error |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, r in results.items():
        memory = f"{r['measured_mib']:.1f} | {r['resident_mib']:.0f} | {r['estimated_mib']:.1f} | {r['error']:+.1%}"
        lines.append(f"| {name} | {memory} | {r['step_cpu_seconds']:.2f} | {r['estimated_seconds']:.2f} | {r['time_error']:+.0%} |")
    ends = []
    for what, key in (("memory", "error"), ("time", "time_error")):
        errors = [abs(r[key]) for r in results.values()]
        ends.append(f"{what} {statistics.median(errors):.1%} in the median, {max(errors):.1%} at most")
    return "\n".join([*lines, "", f"Errors: {'; '.join(ends)}."])


if __name__ == "__main__":
    main(sys.argv[1:])
