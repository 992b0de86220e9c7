"""A hub cache with small models and SAEs under their public names, and how a process is made to look there."""

from __future__ import annotations

import hashlib
import importlib.resources as resources
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.architectures.models import small_model, tune
from tests.architectures.saes import registry, write_sae
from tests.architectures.shapes import GEMMA_RELEASES, LATENTS, SHAPES, WIDTH
from tests.architectures.vocabularies import tokenizer_for


def publish(folder: Path, cache: Path, repo: str) -> Path:
    """Move the files of ``folder`` into ``cache`` as a download of ``repo`` would: blobs, a snapshot of links to them, refs/main.

    Files of an earlier snapshot stay. Returns the snapshot.
    """
    home = cache / f"models--{repo.replace('/', '--')}"
    revision = hashlib.sha1(repo.encode()).hexdigest()
    for name in ("blobs", "refs"):
        (home / name).mkdir(parents=True, exist_ok=True)
    (home / "refs" / "main").write_text(revision, encoding="utf-8")
    snapshot = home / "snapshots" / revision
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        shutil.move(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    shutil.rmtree(folder)
    return snapshot


REGISTRY = "pretrained_saes.yaml"
"""File of sae_lens's package that says which releases there are."""


class Hub:
    """A hub cache in ``folder``; ``need`` fills it. Its registry is sae_lens's own, with the widths of the small Gemma Scope SAEs.

    ``registry=False`` leaves sae_lens its own file.
    """

    def __init__(self, folder: Path, registry: bool = True) -> None:
        self.folder = folder
        self.cache = folder / "hub"
        self.site = folder / "site"
        self.snapshots: dict[str, Path] = {}
        if registry:
            self._write_registry()

    @property
    def registry(self) -> Path:
        """Folder with the registry's file."""
        return self.site / "sae_lens"

    def _write_registry(self) -> None:
        """A package sae_lens that is the installed one, file by file, except for the registry."""
        import sae_lens

        package = Path(str(sae_lens.__file__)).parent
        self.registry.mkdir(parents=True)
        for part in package.iterdir():
            if part.name not in (REGISTRY, "__pycache__"):
                (self.registry / part.name).symlink_to(part)
        text = (package / REGISTRY).read_text(encoding="utf-8")
        for release in GEMMA_RELEASES:
            head = f"\n{release}:\n"
            assert text.count(head) == 1, f"{release} must be a key of {REGISTRY}"
            text = text.replace(head, f"{head}  config_overrides: {{d_in: {WIDTH}, d_sae: {LATENTS}}}\n")
        (self.registry / REGISTRY).write_text(text, encoding="utf-8")

    def need(self, *names: str) -> Hub:
        """Make what the named models (keys of ``SHAPES``) and their SAEs would leave in the cache, unless it is there."""
        for name in names:
            if name not in self.snapshots:
                self._make(name)
        return self

    def _make(self, name: str) -> None:
        shape = SHAPES[name]
        work = self.folder / "work"
        if shape.of is not None:
            self.need(shape.of)
        seed = 1 + list(SHAPES).index(shape.of or name)
        tokenizer = tokenizer_for(shape.kind, chat=shape.of is not None)
        lm = small_model(shape, tokenizer, seed)
        if shape.of is not None:
            tune(lm, seed)
        _stop_at_the_end_of_a_turn(lm, tokenizer)
        lm.save_pretrained(work / "model")
        tokenizer.save_pretrained(work / "model")
        self.snapshots[name] = publish(work / "model", self.cache, shape.repo)
        for release, sae_id in shape.saes:
            write_sae(lm, tokenizer, release, sae_id, work / "sae")
            publish(work / "sae", self.cache, registry()[release]["repo_id"])

    def environment(self) -> dict[str, str]:
        """Variables with which another process looks here, offline."""
        path = os.pathsep.join([str(self.site), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {"HF_HUB_CACHE": str(self.cache), "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}


def _stop_at_the_end_of_a_turn(lm: Any, tokenizer: Any) -> None:
    """End-of-sequence tokens for generation as the public models have them: the end of a turn is one of them."""
    ends = [token for token in ("<end_of_turn>", "<|eot_id|>") if tokenizer.chat_template and token in tokenizer.get_vocab()]
    ids = [tokenizer.eos_token_id, *map(tokenizer.convert_tokens_to_ids, ends)]
    lm.generation_config.eos_token_id = sorted(set(ids))


@contextmanager
def redirected(hub: Hub) -> Iterator[Hub]:
    """This process looks for models and SAEs in ``hub`` only, offline; afterwards everything is as it was."""
    import huggingface_hub.constants as constants
    from sae_lens.loading import pretrained_saes_directory as directory

    with pytest.MonkeyPatch.context() as patch:
        for name, value in hub.environment().items():
            if name != "PYTHONPATH":
                patch.setenv(name, value)
        patch.setattr(constants, "HF_HUB_CACHE", str(hub.cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        patch.setattr(directory, "files", (lambda package: hub.registry) if hub.registry.is_dir() else resources.files)
        directory.get_pretrained_saes_directory.cache_clear()
        try:
            yield hub
        finally:
            directory.get_pretrained_saes_directory.cache_clear()
