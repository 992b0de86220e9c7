from __future__ import annotations

from unlearn.models.identity import folder_identity, identity

SIZE = 3 << 20


def test_a_folder_is_named_by_its_contents(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(bytes(SIZE))
    first = folder_identity(tmp_path / "a")
    assert first == folder_identity(tmp_path / "b") == identity(tmp_path / "b")
    assert len(first) == 16
    (tmp_path / "b" / "notes.txt").write_text("ignored")
    assert folder_identity(tmp_path / "b") == first
    seen = {first}
    (tmp_path / "b" / "config.json").write_text('{"x": 1}')
    seen.add(folder_identity(tmp_path / "b"))
    for content in (bytes(SIZE - 1) + b"1", b"1" + bytes(SIZE - 1), bytes(SIZE + 1), bytes(SIZE // 2) + b"1" + bytes(SIZE // 2 - 1)):
        (tmp_path / "b" / "model.safetensors").write_bytes(content)
        seen.add(folder_identity(tmp_path / "b"))
    assert len(seen) == 6


def test_a_hub_id_is_named_by_its_revision():
    assert identity("owner/name") == "owner/name@main"
    assert identity("owner/name", "v2") == "owner/name@v2"
