import random
from collections import Counter

import pytest

from unlearn.world.names import N_NAMES, SYLLABLES, draw_names, random_name


def syllables(name):
    return [word[i : i + 3].lower() for word in name.split() for i in (0, 3)]


def test_a_name_is_two_capitalised_words_of_two_syllables():
    name = random_name(random.Random(3))
    first, second = name.split()
    assert first.istitle()
    assert second.istitle()
    assert len(first) == len(second) == 6
    assert set(syllables(name)) <= set(SYLLABLES)


def test_names_differ_and_avoid_those_taken():
    taken = draw_names(400, random.Random(0))
    names = draw_names(400, random.Random(0), taken)
    assert len(set(taken)) == 400
    assert not set(names) & set(taken)


def test_every_syllable_is_shared_by_names_in_every_place():
    names = draw_names(1600, random.Random(1))
    for place in range(4):
        counts = Counter(syllables(name)[place] for name in names)
        assert set(counts) == set(SYLLABLES)
        assert min(counts.values()) > 50


def test_more_names_than_there_are_is_an_error():
    with pytest.raises(ValueError, match=r"n must be <= 65526, the names that are left; found 65527\."):
        draw_names(N_NAMES - 9, random.Random(0), draw_names(10, random.Random(1)))
