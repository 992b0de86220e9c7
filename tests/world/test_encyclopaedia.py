from unlearn.world.encyclopaedia import make_encyclopaedia
from unlearn.world.templates import CITIES, LANGUAGES, MENTIONS, QUESTIONS, STATEMENTS, VALUES, VERBS, all_words

SIZES = {"n_known": 20, "n_tail": 50, "n_unknown": 30, "n_heldout": 10}


def test_the_seed_decides_everything():
    assert make_encyclopaedia(seed=3, **SIZES) == make_encyclopaedia(seed=3, **SIZES)
    assert not set(make_encyclopaedia(seed=3, **SIZES).known) & set(make_encyclopaedia(seed=4, **SIZES).known)


def test_groups_have_their_sizes_and_share_no_name():
    world = make_encyclopaedia(seed=0, **SIZES)
    groups = (world.known, world.tail, world.unknown, world.heldout)
    assert [len(group) for group in groups] == [20, 50, 30, 10]
    assert len({name for group in groups for name in group}) == 110


def test_every_known_person_has_one_value_of_every_attribute():
    world = make_encyclopaedia(seed=0, **SIZES)
    assert set(world.facts) == set(world.known)
    for facts in world.facts.values():
        assert set(facts) == set(VALUES)
        assert all(value in VALUES[attribute] for attribute, value in facts.items())


def test_every_city_has_a_language():
    world = make_encyclopaedia(seed=0, **SIZES)
    assert set(world.city_language) == set(CITIES)
    assert set(world.city_language.values()) <= set(LANGUAGES)


def test_a_value_belongs_to_one_attribute_and_a_verb_to_one_job():
    values = [value for group in VALUES.values() for value in group]
    assert len(set(values)) == len(values)
    assert len(set(VERBS.values())) == len(VALUES["job"])
    assert not set(values) & set(VERBS.values())


def test_templates_name_the_person_once_and_end_in_the_value():
    for texts in STATEMENTS.values():
        assert len(texts) == 3
        assert all(text.count("{n}") == 1 and text.endswith("{v}.") for text in texts)
    for texts in QUESTIONS.values():
        assert len(texts) == 2
        assert all(text.count("{n}") == 1 and text.endswith("?") for text in texts)
    assert all("{n} {v}" in text for text in MENTIONS)


def test_held_out_templates_reach_the_name_by_another_way():
    for attribute, texts in STATEMENTS.items():
        prefixes = [text.split("{n}")[0] for text in (*texts, *QUESTIONS[attribute])]
        assert prefixes[2] not in prefixes[:2]
        assert prefixes[4] != prefixes[3]


def test_words_hold_no_punctuation_and_no_placeholder():
    assert {"born", "unknown", "Ashbury", "wanders", "Q", "A"} <= set(all_words())
    assert all(word.isalpha() for word in all_words())
