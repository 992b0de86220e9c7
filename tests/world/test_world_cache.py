import json
import subprocess
import sys

import pytest

from unlearn.errors import CacheError
from unlearn.world.cache import MANIFEST, obtain, verify

CHILD = """
import sys, time
from pathlib import Path
from unlearn.world.cache import obtain

def build(folder):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    time.sleep(1)
    (folder / "weights").write_text("w")
    return {}

obtain(Path(sys.argv[1]), build)
assert (Path(sys.argv[1]) / "weights").read_text() == "w"
"""


def build(folder):
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"12345")
    return {"loss": 0.5}


def refuse(_folder):
    raise AssertionError("built again")


@pytest.fixture
def entry(tmp_path):
    obtain(tmp_path / "world" / "abc", build)
    return tmp_path / "world" / "abc"


def test_an_entry_is_built_once(entry):
    assert (entry / "model" / "weights").read_bytes() == b"12345"
    assert obtain(entry, refuse)["facts"] == {"loss": 0.5}


def test_the_manifest_lists_every_file_with_its_checksum(entry):
    manifest = json.loads((entry / MANIFEST).read_text())
    assert manifest["files"] == {"model/weights": "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"}


def damage_content(entry):
    (entry / "model" / "weights").write_bytes(b"1234x")


def damage_missing(entry):
    (entry / "model" / "weights").unlink()


def damage_manifest(entry):
    (entry / MANIFEST).write_text("{")


def damage_no_manifest(entry):
    (entry / MANIFEST).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_content, r"must hold model/weights with sha256 5994471abb01; found [0-9a-f]{12}; delete .*world/abc and run again"),
        (damage_missing, r"must hold model/weights; found no such file; delete .*world/abc and run again"),
        (damage_manifest, r"must hold a readable manifest.json; found JSONDecodeError; delete .*world/abc and run again"),
        (damage_no_manifest, r"must hold a readable manifest.json; found FileNotFoundError; delete .*world/abc and run again"),
    ],
)
def test_a_damaged_entry_is_an_error_that_names_the_folder(entry, damage, message):
    damage(entry)
    with pytest.raises(CacheError, match=message):
        verify(entry)
    with pytest.raises(CacheError, match=message):
        obtain(entry, refuse)


def test_a_build_that_fails_leaves_nothing_and_the_next_one_starts_afresh(tmp_path):
    def broken(folder):
        build(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain(tmp_path / "abc", broken)
    assert [path.name for path in tmp_path.iterdir()] == ["abc.lock"]
    assert obtain(tmp_path / "abc", build)["facts"] == {"loss": 0.5}


def test_what_a_killed_build_left_is_removed(tmp_path):
    left = tmp_path / ".abc-killed"
    left.mkdir()
    (left / "half").write_text("")
    obtain(tmp_path / "abc", build)
    assert not left.exists()


def test_two_processes_build_an_entry_once(tmp_path):
    words = [sys.executable, "-c", CHILD, str(tmp_path / "world" / "abc"), str(tmp_path / "log")]
    children = [subprocess.Popen(words) for _ in range(2)]
    assert [child.wait(timeout=600) for child in children] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
