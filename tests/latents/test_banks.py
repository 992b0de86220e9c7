from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.toys import LAYER, Toy, batched, toy
from unlearn.errors import CacheError, DataError
from unlearn.latents.banks import Banks, activations_at, build_banks, collect


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return toy(tmp_path_factory.mktemp("toy"))


def test_bank_holds_the_stock_hidden_state_of_each_position(made: Toy) -> None:
    rows = made.datamodule.streams["known"]
    for position, where in (("entity_end", lambda r: r.entity_end), ("answer_start", lambda r: r.answer_start - 1)):
        expected = []
        for batch in batched(made.datamodule, rows):
            states = made.lm(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, output_hidden_states=True).hidden_states
            by_id = {r.row_id: r for r in rows}
            expected += [states[LAYER + 1][i, where(by_id[int(row_id)])] for i, row_id in enumerate(batch.row_id_B)]
        torch.testing.assert_close(made.banks.known[position], torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_rows_without_an_entity_are_left_out(made: Toy) -> None:
    batch = made.batch()["forget"]
    some = batch._replace(entity_end_B=torch.tensor([batch.entity_end_B[0], -1, -1, batch.entity_end_B[3]]))
    kept = activations_at(made.lm, some, LAYER, "entity_end")
    torch.testing.assert_close(kept, activations_at(made.lm, batch, LAYER, "entity_end")[[0, 3]])
    nobody = batch._replace(entity_end_B=torch.full((4,), -1))
    with pytest.raises(DataError, match="found none to read at 'entity_end'"):
        collect(made.lm, [nobody], LAYER, "entity_end")


def test_second_build_reads_the_file_and_a_damaged_one_is_refused(made: Toy, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    rows = [batched(made.datamodule, made.datamodule.streams[s]) for s in ("known", "unknown", "forget")]
    first = build_banks(made.lm, *rows, LAYER, path)
    again = build_banks(None, [], [], [], LAYER, path)  # type: ignore[arg-type]
    assert torch.equal(first.known["entity_end"], again.known["entity_end"])
    assert torch.equal(first.unknown["answer_start"], again.unknown["answer_start"])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CacheError, match=r"bank\.safetensors is damaged .*; delete it and run again\."):
        Banks.load(path, LAYER)
