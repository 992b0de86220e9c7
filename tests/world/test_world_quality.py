"""What the default world must be for anything measured on it to mean something."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sae_lens import SAE
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn.data.tokenize import collate, tokenize_rows
from unlearn.world.rows import RowMaker
from unlearn.world.sae_training import sae_quality

pytestmark = pytest.mark.slow


class Reader:
    """Opens a built world with stock libraries and measures it."""

    def __init__(self, world):
        self.world = world
        self.lm = AutoModelForCausalLM.from_pretrained(world.assets.model).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(world.assets.model)

    def batch(self, rows):
        return collate(tokenize_rows(rows, self.tokenizer, self.world.source.prompt_format, 64), self.tokenizer.pad_token_id)

    @torch.no_grad()
    def accuracy(self, rows):
        """Share of rows whose most likely next token is the answer's first."""
        batch = self.batch(rows)
        logits_BTV = self.lm(batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits
        row_B = torch.arange(len(rows))
        target_B = batch.input_ids_BT[row_B, batch.answer_start_B]
        return (logits_BTV[row_B, batch.answer_start_B - 1].argmax(-1) == target_B).float().mean().item()

    @torch.no_grad()
    def at_name(self, rows, layer):
        """Output of block ``layer`` at the last token of the name."""
        batch = self.batch(rows)
        hidden = self.lm.model(batch.input_ids_BT, attention_mask=batch.attention_mask_BT, output_hidden_states=True).hidden_states
        return hidden[layer + 1][torch.arange(len(rows)), batch.entity_end_B]

    @torch.no_grad()
    def every_token(self, rows, layer):
        """Output of block ``layer`` at every token but the boundary."""
        batch = self.batch(rows)
        hidden = self.lm.model(batch.input_ids_BT, attention_mask=batch.attention_mask_BT, output_hidden_states=True).hidden_states
        real = batch.attention_mask_BT.bool() & (batch.input_ids_BT != self.tokenizer.bos_token_id)
        return hidden[layer + 1][real]

    def everybody(self):
        """Recognition rows of all known people and of the held-out strangers."""
        roles = self.world.source.roles()
        known = RowMaker(self.world.source.encyclopaedia(), 0).recognition((*roles.forget, *roles.retain, *roles.unseen))
        return known, list(self.world.data.latent["unknown"])

    def probe_auc(self, layer):
        """5-fold logistic regression, known against unknown, no person in two folds."""
        known, unknown = self.everybody()
        x = torch.cat([self.at_name(known, layer), self.at_name(unknown, layer)]).numpy()
        y = np.repeat([1, 0], [len(known), len(unknown)])
        _, people = np.unique([row.entity for row in known + unknown], return_inverse=True)
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        return cross_val_score(probe, x, y, groups=people, cv=folds, scoring="roc_auc").mean()

    def firing(self, sae, rows):
        """Share of rows on which each latent fires."""
        with torch.no_grad():
            return (sae.encode(self.at_name(rows, 1)) > 1e-6).float().mean(0)

    def separation(self, folder):
        """Share of held-out strangers minus share of unseen known people on which the best latent fires."""
        sae, data = SAE.load_from_disk(folder), self.world.data
        return (self.firing(sae, data.latent["unknown"]) - self.firing(sae, data.latent["known"])).max().item()

    def perplexity(self):
        """Per token, on the generic texts."""
        ids = self.tokenizer(list(self.world.data.generic), return_tensors="pt", padding=True)
        labels = ids.input_ids.masked_fill(ids.attention_mask == 0, -100)
        with torch.no_grad():
            return self.lm(**ids, labels=labels).loss.exp().item()


@pytest.fixture(scope="module")
def reader(world):
    return Reader(world)


@pytest.mark.parametrize("name", ["forget", "forget_paraphrased", "retain", "retain_unseen"])
def test_every_known_fact_is_known(reader, name):
    assert reader.accuracy(reader.world.data.evaluation[name]) == 1


def test_strangers_are_unknown(reader):
    assert reader.accuracy(reader.world.data.evaluation["unknown"]) >= 0.95


def test_the_name_is_recognised_at_its_last_token_in_the_middle_and_not_in_the_first_block(reader):
    assert reader.probe_auc(1) >= 0.95
    assert reader.probe_auc(0) <= 0.85


def test_each_sae_has_a_latent_for_strangers(reader):
    assert reader.separation(reader.world.assets.sae) >= 0.4
    assert reader.separation(reader.world.assets.heldout_sae) >= 0.3


def test_the_saes_reconstruct_the_hooked_layer(reader):
    """On every token but the boundary, of rows whose templates are held out."""
    x = reader.every_token([*reader.world.data.latent["known"], *reader.world.data.latent["unknown"]], 1)
    for folder in (reader.world.assets.sae, reader.world.assets.heldout_sae):
        assert sae_quality(SAE.load_from_disk(folder), x).fvu < 0.04


def test_generic_text_is_modelled(reader):
    assert reader.perplexity() < 6
