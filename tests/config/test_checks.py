import pytest

from unlearn.config.checks import check, collected, one_of
from unlearn.errors import ConfigError


def test_a_failed_check_raises_one_sentence():
    with pytest.raises(ConfigError, match=r"^optim\.lr must be > 0; found -1\.$"):
        check(False, "optim.lr", "> 0", -1)


def test_a_choice_is_listed_and_suggested():
    with pytest.raises(ConfigError, match=r"^optim\.schedule must be one of linear, cosine; found 'cosin'\. Did you mean 'cosine'\?$"):
        one_of("cosin", ("linear", "cosine"), "optim.schedule")


def test_what_holds_raises_nothing():
    check(True, "a", "b", "c")
    one_of("a", ("a",), "key")


def test_collecting_goes_on_and_ends_with_the_block():
    with collected() as problems:
        check(False, "a", "1", 2)
        one_of("x", ("y",), "b")
        with collected() as inner:
            check(False, "c", "1", 2)
    assert [p.split(" ")[0] for p in problems] == ["a", "b"]
    assert len(inner) == 1
    with pytest.raises(ConfigError):
        check(False, "a", "1", 2)


def test_collecting_ends_when_the_block_raises():
    with pytest.raises(KeyError), collected():
        raise KeyError
    with pytest.raises(ConfigError):
        check(False, "a", "1", 2)
