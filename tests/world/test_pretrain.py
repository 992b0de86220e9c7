import math

import torch

from unlearn.world.pretrain import pretrain, tiny_llama
from unlearn.world.tokenizer import make_tokenizer

TOKENIZER = make_tokenizer()
SIZE = {"blocks": 1, "width": 32, "heads": 2, "max_length": 32}


def fresh(seed=0, **options):
    return tiny_llama(TOKENIZER, seed=seed, **SIZE, **options)


def test_weights_follow_the_seed_and_the_global_random_state_is_kept():
    torch.manual_seed(9)
    before = torch.random.get_rng_state()
    a, b, c = fresh(1), fresh(1), fresh(2)
    assert torch.random.get_rng_state().equal(before)
    weight = "model.layers.0.self_attn.q_proj.weight"
    assert a.state_dict()[weight].equal(b.state_dict()[weight])
    assert not a.state_dict()[weight].equal(c.state_dict()[weight])


def test_the_model_has_the_sizes_asked_for():
    lm = fresh(init_std=0.1)
    assert lm.config.num_hidden_layers == 1
    assert lm.config.pad_token_id == TOKENIZER.pad_token_id
    assert lm.get_input_embeddings().weight is lm.get_output_embeddings().weight
    assert 0.09 < lm.model.layers[0].self_attn.q_proj.weight.std() < 0.11


def test_the_loss_falls_to_the_entropy_of_the_text():
    """Each row repeats one of two patterns: only its choice, ln 2 over 15 predicted tokens, cannot be foreseen."""
    patterns = torch.tensor([[2, *([5, 9, 7] * 5)], [2, *([8, 4, 6] * 5)]])

    def batches(step):
        return patterns[torch.randint(2, (8,), generator=torch.Generator().manual_seed(step))]

    lm = fresh(init_std=0.05)
    loss = pretrain(lm, batches, steps=150, lr=1e-2, progress=False)
    assert abs(loss - math.log(2) / 15) < 0.01
    assert not lm.training


def test_padding_is_not_predicted_and_not_read():
    row = torch.tensor([[2, 5, 9, 7, 5, 9]])
    padded = torch.cat([row, torch.zeros(1, 6, dtype=torch.long)], dim=1)
    short = pretrain(fresh(), lambda _step: row, steps=1, lr=1e-3, progress=False)
    assert abs(pretrain(fresh(), lambda _step: padded, steps=1, lr=1e-3, pad_id=0, progress=False) - short) < 1e-4
    assert abs(pretrain(fresh(), lambda _step: padded, steps=1, lr=1e-3, progress=False) - short) > 1e-3


def test_training_twice_gives_the_same_weights():
    def train():
        lm = fresh()
        pretrain(
            lm, lambda step: torch.randint(3, 50, (2, 10), generator=torch.Generator().manual_seed(step)), steps=5, lr=1e-2, progress=False
        )
        return lm.state_dict()

    a, b = train(), train()
    assert all(a[name].equal(b[name]) for name in a)
