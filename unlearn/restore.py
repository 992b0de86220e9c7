"""A finished run brought back as objects: its model in its final form, ready to be measured, attacked, talked to or exported."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.assembly import Assembly, assemble
from unlearn.config.load import load_config
from unlearn.config.plugins import plugin_schemas
from unlearn.errors import RunError
from unlearn.tracking.files import read_json
from unlearn.tracking.rundir import RunDirectory

if TYPE_CHECKING:
    from unlearn.module import UnlearningModule


def restore(path: str | Path) -> Assembly:
    """The objects of the finished run in ``path``; ``module.lm`` is the model the run ended with, interventions in place.

    Nothing in the run directory changes: what the assembly writes goes to a temporary folder.

    Raises:
        RunError: the folder is no run, has not finished, or its weights are missing, damaged or of another model.
        UnlearnError: models or data of the run cannot be loaded any more.
    """
    run = RunDirectory.open(path)
    state = read_json(run.status_path).get("state")
    if state != "finished":
        raise RunError(f"{path} must be a finished run; found one that is {state}.")
    config = load_config(run.config_path, schemas=plugin_schemas())
    with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
        assembly = assemble(config, RunDirectory.create(folder, "restored"))
    assembly.run = assembly.evaluation.run = assembly.latent.run = run
    load_final(assembly.module, run)
    return assembly


def load_final(module: UnlearningModule, run: RunDirectory) -> None:
    """Put the final weights of ``run`` into ``module`` and install what acts at inference.

    Raises:
        RunError: the weights are missing or not those that this run trains.
    """
    weights = run.read_weights()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    odd = sorted(weights.keys() ^ trained.keys())
    odd += sorted(name for name in weights.keys() & trained.keys() if weights[name].shape != trained[name].shape)
    if odd:
        raise RunError(f"{run.path} must hold the {len(trained)} trained weights of its run; found {len(weights)} that differ at {odd[0]}.")
    for name, parameter in trained.items():
        parameter.data.copy_(weights[name])
    module.conclude(restored=True)
    module.lm.eval()
