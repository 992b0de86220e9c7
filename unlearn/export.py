"""A finished run taken along: a folder with the model, what was done to it, and what is known of it.

The lifecycle, with the place of every part::

    export(run, folder)
        find_subject: a finished run that trained weights               subject
        restore: the model in its final form                            restore
        write_model, write_tokenizer                                    models.export
        provenance.json, README.md (model card), local.json             export_files, report.card
        the finished folder is put in place                             tracking.files
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.assembly import cache_folder, stage
from unlearn.errors import RunError
from unlearn.export_files import card_and_provenance, check_hidden, concealer_of, forgotten_names
from unlearn.registry import entries, find
from unlearn.restore import restore
from unlearn.subject import find_subject
from unlearn.tracking.exported import LOCAL_FILE, PROVENANCE
from unlearn.tracking.files import dump_json, read_json, write_atomic

if TYPE_CHECKING:
    from unlearn.assembly import Assembly
    from unlearn.tracking.rundir import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The folder, its ``form`` (whole, adapter, merged), and what its provenance.json says."""

    path: Path
    form: str
    provenance: Mapping[str, Any]


def exportable(model: str) -> RunDirectory:
    """The finished run in ``model`` whose weights say what it does.

    Raises:
        RunError: it is no finished run, nothing was trained in it, or its method acts while the model runs.
        ModelError: there is nothing at all.
    """
    run = find_subject(model).run
    if run is None:
        raise RunError(f"{model} must be the folder of a finished run; found a model, which is ready to be used as it is.")
    manifest = read_json(run.manifest_path)
    name = str(_method_name(run))
    facts = entries("method")[name].facts if name in entries("method") else {}
    if manifest.get("intervention") or facts.get("intervention"):
        raise RunError(
            f"{model} must hold weights that were changed; found method.name {name}, which acts while the model runs and leaves the "
            f"weights as they were: use it from its run folder (unlearn chat, evaluate, attack), or forget with a method that trains."
        )
    if facts.get("family") == "reference":
        raise RunError(f"{model} must be a run that unlearns; found method.name {name}, which measures a model that is there already.")
    return run


def _method_name(run: RunDirectory) -> str:
    from unlearn.tracking.reader import read_run

    return read_run(run.path).method


def export(
    model: str, folder: Path, *, form: str | None = None, dtype: str | None = None, hash_names: bool = False, force: bool = False
) -> Exported:
    """Write the model of a finished run to ``folder``: weights and tokenizer, model card, provenance.

    Everything is written beside ``folder`` first and put in place when it is whole; the run stays as it is (with ``hash_names`` it gets the
    salt of the hashes).

    Args:
        model: folder of the run.
        folder: where to; new or empty, or an earlier export with ``force``.
        form: ``adapter`` or ``merged`` for a LoRA run (default: merged).
        dtype: type of the weights; None leaves them as they were trained.
        hash_names: whether the forgotten names stand in the folder as salted hashes only.
        force: whether an earlier export is replaced.

    Raises:
        UnlearnError: the run cannot be exported or restored, or the folder cannot be written; nothing is left behind.
    """
    from transformers.utils.logging import disable_progress_bar

    from unlearn.models.export import MERGED, form_of, on_whole_weights, weight_hashes, write_model, write_tokenizer

    disable_progress_bar()

    run = exportable(model)
    with writing_folder(folder, force) as aside:
        assembly = restore(run.path)
        lm, own = assembly.module.lm, assembly.config.model
        form = form_of(lm, form)
        if form == MERGED and own.quantise is not None:
            lm = on_whole_weights(lm, own)
        dtype = dtype or assembly.config.model.dtype
        names = forgotten_names(assembly.data)
        concealer = concealer_of(run, names) if hash_names else None
        with stage("weights"):
            write_model(lm, form, dtype, aside)
            write_tokenizer(_tokenizer_place(assembly), assembly.config.model, aside)
        fmt = assembly.suite.reader.prompt_format
        facts = {"form": form, "dtype": dtype, "weights": weight_hashes(aside), "prompt": fmt.question + fmt.separator}
        card, provenance, local = card_and_provenance(run, assembly.config, assembly.facts, list(names), facts, concealer)
        write_atomic(aside / "README.md", card)
        write_atomic(aside / PROVENANCE, dump_json(provenance) + "\n")
        if concealer is None:
            write_atomic(aside / LOCAL_FILE, dump_json(local) + "\n")
        else:
            check_hidden(aside, concealer)
    return Exported(path=folder, form=form, provenance=provenance)


def _tokenizer_place(assembly: Assembly) -> str:
    """Where the original model's tokenizer came from."""
    config = assembly.config
    named = config.model.tokenizer or config.model.path
    if named is not None:
        from unlearn.models.lm import locate

        return locate(named, "model.tokenizer")
    source = find("source", config.data.source).load()(config.data, seed=config.seed, cache=cache_folder(config))
    return str(source.assets(progress=False).model)


@contextmanager
def writing_folder(folder: Path, force: bool) -> Iterator[Path]:
    """A new folder beside ``folder``, which takes its place when the block is done; whatever goes wrong, ``folder`` stays as it was.

    Raises:
        RunError: something is there that must not be replaced, or the disk does not take it.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} must be a new folder; found a file.")
    if folder.is_dir() and any(folder.iterdir()):
        ours = (folder / PROVENANCE).is_file()
        if not ours:
            raise RunError(f"{folder} must be a new folder; found one that holds something else than an export. Take another name.")
        if not force:
            raise RunError(f"{folder} must be a new folder; found an export. Replace it by --force, or take another name.")
    aside = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name or 'export'}."))
        yield aside
        os.chmod(aside, 0o755)
        for path in aside.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        _put_in_place(aside, folder)
    except OSError as error:
        raise RunError(f"{folder} must be a folder that can be written; found: {error.strerror or error}.") from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _put_in_place(new: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(new, folder)
        return
    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
    os.replace(folder, old / "was")
    try:
        os.replace(new, folder)
    except OSError:
        os.replace(old / "was", folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
