"""What a configuration names, read once for all checks of ``unlearn doctor``; nothing is built, weights are read when asked for."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from unlearn.assembly import cache_folder
from unlearn.config.schema import RunConfig
from unlearn.errors import ModelError
from unlearn.registry import find

if TYPE_CHECKING:
    from pathlib import Path

    from unlearn.data.reader import Reader
    from unlearn.data.sources.base import Source
    from unlearn.methods.base import Method
    from unlearn.models.sae import FrozenSAE
    from unlearn.types import Assets, EntityData

WIDTH_IN_ID = re.compile(r"(?:width_|-)(\d+)(k|m)\b|\d(?:r|m|a)_(\d+)(x)$")
"""How public names state the number of latents: ``layer_12/width_16k/canonical``, ``...-v5-32k``, ``l12r_8x`` (times the width)."""


class Pieces:
    """Parts of one run, each made when it is asked for; what cannot be made raises ``UnlearnError`` each time."""

    def __init__(self, run: RunConfig) -> None:
        self.run = run

    @cached_property
    def source(self) -> Source:
        """The data source."""
        made: Source = find("source", self.run.data.source, "data.source").load()(
            self.run.data, seed=self.run.seed, cache=cache_folder(self.run)
        )
        return made

    @cached_property
    def method(self) -> type[Method]:
        """The method's class."""
        cls: type[Method] = find("method", self.run.method.name, "method.name").load()
        return cls

    @cached_property
    def data(self) -> EntityData:
        """The rows."""
        return self.source.serve()

    @cached_property
    def assets(self) -> Assets | None:
        """Models of the source that are in the cache."""
        return self.source.built()

    @property
    def model_place(self) -> str | None:
        """Directory or hub id of the language model; None where the source brings one that is not built yet."""
        from unlearn.models.lm import locate_model

        if self.run.model.path is not None:
            return locate_model(self.run.model.path, "model.path")
        return None if self.assets is None else str(self.assets.model)

    @cached_property
    def lm_config(self) -> Any:
        """The model's own configuration (a small file, fetched if need be); None where there is no model yet.

        Raises:
            ModelError: it cannot be loaded.
        """
        from transformers import AutoConfig

        from unlearn.models.lm import one_line

        c, place = self.run.model, self.model_place
        if place is None:
            return None
        try:
            return AutoConfig.from_pretrained(place, revision=c.revision or "main", trust_remote_code=c.trust_remote_code)
        except Exception as error:  # hub, network and file errors have no common base
            raise ModelError(f"model.path {place} could not be loaded: {one_line(error)}") from error

    def shape(self) -> Any:
        """``lm_config``, or the published shape of a model that is not here; None where neither is known."""
        from unlearn.errors import UnlearnError
        from unlearn.estimate.public import public_config

        try:
            return self.lm_config
        except UnlearnError:
            return public_config(str(self.run.model.path))

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer; None where there is no model yet.

        Raises:
            ModelError: it cannot be loaded.
        """
        from transformers import AutoTokenizer

        from unlearn.models.lm import locate, one_line

        c, place = self.run.model, self.model_place
        if place is None:
            return None
        place = place if c.tokenizer is None else locate(c.tokenizer, "model.tokenizer")
        try:
            made = AutoTokenizer.from_pretrained(place, trust_remote_code=c.trust_remote_code)
        except Exception as error:  # as above
            raise ModelError(f"the tokenizer of model.path {place} could not be loaded: {one_line(error)}") from error
        if made.pad_token is None:
            made.pad_token = made.eos_token or made.unk_token
        return made

    @cached_property
    def reader(self) -> Reader | None:
        """What makes tokens of the rows; None where there is no tokenizer yet."""
        from unlearn.data.chat import chat_format
        from unlearn.data.reader import Reader

        if self.tokenizer is None:
            return None
        return Reader(
            tokenizer=self.tokenizer,
            prompt_format=chat_format(self.source.prompt_format, self.tokenizer, self.run.model.chat),
            refusals=self.data.refusals,
            max_length=self.run.data.max_length,
            batch_size=self.run.evaluation.batch_size,
            max_new_tokens=self.run.evaluation.max_new_tokens,
        )

    @property
    def sae_default(self) -> Path | None:
        """The SAE of the source, if it is in the cache."""
        return None if self.assets is None else self.assets.sae

    @cached_property
    def sae(self) -> FrozenSAE | None:
        """The SAE with its weights; None where the source brings one that is not built yet.

        Raises:
            ModelError: it cannot be loaded.
        """
        from pathlib import Path

        from unlearn.models.route_sae import load_route_sae
        from unlearn.models.sae import load_sae

        c = self.run.sae
        if c.route is not None:
            return load_route_sae(Path(c.route).expanduser())
        if c.path is None and c.release is None and self.sae_default is None:
            return None
        return load_sae(c, self.sae_default)

    def blank_sae(self) -> FrozenSAE | None:
        """The SAE's shape on the meta device: of its files where they are there, else of what its public name says."""
        from unlearn.errors import UnlearnError
        from unlearn.estimate.stand_in import blank_sae

        try:
            sae = self.sae
        except UnlearnError:
            sae = None
        if sae is not None and len(sae.layers) == 1:
            return blank_sae(sae.d_in, sae.d_sae, sae.architecture, sae.layers[0])
        return public_sae(self.run, self.shape())


def public_sae(run: RunConfig, lm_config: Any) -> FrozenSAE | None:
    """The shape of a public SAE as its name tells it, on the meta device; None where the name does not.

    Args:
        run: names release and id; the block is ``sae.layer``, or the middle one.
        lm_config: the language model's configuration; None where it is not known.
    """
    from unlearn.estimate.stand_in import blank_sae

    found = WIDTH_IN_ID.search(str(run.sae.sae_id)) or WIDTH_IN_ID.search(str(run.sae.release))
    if run.sae.release is None or found is None or lm_config is None:
        return None
    text = lm_config.get_text_config()
    layer = text.num_hidden_layers // 2 if run.sae.layer is None else run.sae.layer
    latents = int(found[1]) * (2**10 if found[2] == "k" else 2**20) if found[1] else int(found[3]) * text.hidden_size
    return blank_sae(text.hidden_size, latents, "jumprelu", layer)
