"""Files of the benchmarks' schemas, made up: a few rows of each table, under the benchmarks' own file names."""

from __future__ import annotations

import json
from pathlib import Path

from tests.data.sources.fake_tofu import write_tofu

GIVEN = ["Orla", "Tomas", "Ingeborg", "Hadiza", "Kenji", "Marguerite", "Dov", "Yusra", "Pavel", "Lindiwe", "Mateo", "Saoirse"]
FAMILY = ["Quill", "Okonjo", "Brandt", "Ferreira", "Nakagawa", "Lindqvist", "Abara", "Moreau", "Castell", "Haddad", "Petrov", "Sato"]
HEADS = ["bran", "cor", "del", "fen", "gal", "har", "kor", "lum", "mar", "nor", "pel", "ros", "sil", "tor", "vel", "wyn"]
TAILS = ["adine", "estra", "iphon", "olith", "umbra", "yssen", "artic", "ombre"]


def person(i: int) -> str:
    """One of 144 names, no two of 12 in a row with a part in common."""
    return f"{GIVEN[i % 12]} {FAMILY[(i + i // 12) % 12]}"


def term(i: int) -> str:
    """One of 128 words."""
    return HEADS[i % 16] + TAILS[(i + i // 16) % 8]


def dump(path: Path, rows: object, lines: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) if lines else json.dumps(rows, ensure_ascii=False)  # type: ignore[attr-defined]
    path.write_text(text, encoding="utf-8")


def choice(i: int, about: str) -> dict[str, object]:
    return {
        "question": f"Which property does {about} have?",
        "choices": ["It is red.", "It is blue.", "It is warm.", "It is cold."],
        "answer": i % 4,
    }


def write_mmlu(root: Path, subjects: tuple[str, ...] = ("virology", "anatomy", "philosophy", "sociology"), each: int = 12) -> Path:
    """CSV files as MMLU was first published, for four subjects."""
    import csv

    for s, subject in enumerate(subjects):
        path = root / "test" / f"{subject}_test.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as stream:
            for i in range(each):
                made = choice(i, term(s * each + i))
                csv.writer(stream).writerow([made["question"], *made["choices"], "ABCD"[int(str(made["answer"]))]])  # type: ignore[misc]
    return root


def write_wmdp(root: Path) -> Path:
    """Questions of the three domains, corpora of two, and MMLU's questions."""
    write_mmlu(root)
    for d, domain in enumerate(("bio", "chem", "cyber")):
        dump(root / f"{domain}_questions.json", [choice(i, term(60 + 12 * d + i)) for i in range(12)])
    for file, first in (("bio_remove_dataset.jsonl", 60), ("cyber-forget-corpus.jsonl", 84)):
        dump(
            root / file, [{"text": f"The nature of {term(first + i)} is told here. " + "It is made slowly. " * 20} for i in range(6)], True
        )
    for file in ("bio_retain_dataset.jsonl", "cyber-retain-corpus.jsonl"):
        dump(root / file, [{"text": f"Chapter {i}. " + "Plants grow in the sun and rain. " * 12} for i in range(5)], True)
    return root


def write_muse(root: Path) -> Path:
    """Every table of MUSE-News that is read."""
    about = {"forget": 0, "retain": 30}
    for part, first in about.items():
        rows = [{"question": f"Where does {person(first + i)} live?", "answer": f"In {term(i)}."} for i in range(16)]
        dump(root / "knowmem" / f"{part}_qa.json", rows)
    for part, first in (("forget", 0), ("retain1", 30)):
        texts = [{"text": f"{person(first + i)} came home. " + "Then the rain fell on the town. " * 15} for i in range(8)]
        dump(root / "raw" / f"{part}.json", texts)
        dump(root / "scal" / "forget_1.json", texts[:2])
    dump(root / "verbmem" / "forget.json", [{"prompt": f"{person(0)} came home. Then", "gt": " the rain fell on the town."}])
    for part in ("forget", "retain", "holdout"):
        dump(root / "privleak" / f"{part}.json", [{"text": f"A text of {part}, number {i}, that goes on."} for i in range(5)])
    return root


def write_rwku(root: Path, count: int = 16) -> Path:
    """Every table of RWKU that is read, in the folder of all targets."""
    folder = root / "All"
    people = [person(i) for i in range(count)]
    dump(folder / "intro.json", [{"target": name, "intro": f"{name} is famous."} for name in people])
    kinds = ["prefix injection", "affirmative suffix", "incontext learning"]
    probes: dict[str, list[dict[str, str]]] = {f"forget_level{level}": [] for level in (1, 2, 3)}
    near: dict[str, list[dict[str, str]]] = {"neighbor_level1": [], "neighbor_level2": []}
    for i, name in enumerate(people):
        own = {"subject": name, "answer": term(i)}
        probes["forget_level1"].append({**own, "query": f"{name} was born in ___.", "level": "1", "type": "cloze"})
        for what in ("born", "taught", "married"):
            query = f"Where was {name} {what}?"
            probes["forget_level2"].append({**own, "query": query, "level": "2", "type": "simple question"})
        for kind in kinds:
            query = f"Question: {name}?" if kind == "incontext learning" else f"Ignore it. Where is {name} from?"
            probes["forget_level3"].append({**own, "query": query, "level": "3", "type": kind})
        for level in ("1", "2"):
            row = {**own, "neighbor": f"{term(40 + i).title()} Prize", "query": f"Who gave the {term(40 + i).title()} Prize to {name}?"}
            near[f"neighbor_level{level}"].append({**row, "level": level, "type": "x"})
    for table, rows in (probes | near).items():
        dump(folder / f"{table}.json", rows)
    texts = [
        {"subject": name, "text": f"{name} came into the world in {term(i)}. " + "Many years went by. " * 30}
        for i, name in enumerate(people)
    ]
    for file in ("passage", "positive", "forget_mia"):
        dump(folder / f"{file}.json", texts)
    dump(folder / "retain_mia.json", [{"text": "Nobody knows the sea. It is deep and blue."}])
    dump(folder / "retain_mmlu.json", [{**choice(1, term(100)), "task": "virology", "examples": []}] * 3)
    dump(folder / "retain_bbh.json", [{"question": "not ( True ) is", "answer": "False", "task": "boolean", "cot": ""}])
    mc1 = {"choices": ["No.", "Yes.", "At night."], "labels": [1, 0, 0]}
    dump(folder / "truthful.json", [{"question": "Do pigs fly?", "mc1_targets": mc1, "mc2_targets": mc1}])
    dump(folder / "triviaqa.json", [{"question": "Who wrote Hamlet?", "answers": ["Shakespeare", "William Shakespeare"]}])
    dump(folder / "fluency.json", [{"instruction": "Tell a story.", "output": "Once upon a time."}])
    return root


def write_knowundo(root: Path, authors: int = 10) -> Path:
    """The four tables of the privacy domain, and the two files of the copyright domain as the hub has them."""
    asked = {
        "unlearn": ["Where does {} reside?", "What is {}'s email address?", "Who are {}'s parents?", "How can one reach {}?"],
        "retention": ["Which genre does {} write in?", "Has {} won a prize?", "Who reads {}'s novels?", "What inspired {}?"],
    }
    for kind, questions in asked.items():
        split = {"train": questions[:3], "val": questions[3:]}
        for name, some in split.items():
            rows = [
                {"text": question.format(person(i)), "labels": f"It is said of {person(i)}: {term(i + n)}."}
                for i in range(authors)
                for n, question in enumerate(some)
            ]
            dump(root / f"privacy_{kind}_{name}.json", rows)
        first = 0 if kind == "unlearn" else 40
        parts = {
            name: [{"text": f"Continue the tale of {term(start + i)} please.", "labels": "Certainly! It went on."} for i in range(8)]
            for name, start in (("train", first), ("val", first + 16))
        }
        dump(root / "copyright" / f"{kind}.json", parts)
    return root


def write_popqa(root: Path, count: int = 60) -> Path:
    """Subjects with falling popularity, two questions each; two subjects share a name."""
    rows = []
    for i in range(count):
        shared = {"subj": person(i), "subj_id": i, "s_pop": 100_000 // (i + 1) ** 2}
        for prop, question in (
            ("occupation", f"What is {person(i)}'s occupation?"),
            ("place of birth", f"In what city was {person(i)} born?"),
        ):
            answers = [term(i % 7), f"{term(i % 7)}s"]
            rows.append({**shared, "prop": prop, "obj": answers[0], "question": question, "possible_answers": json.dumps(answers)})
    rows.append({**rows[0], "subj_id": 999, "question": f"What is {person(0)}'s occupation?"})
    dump(root / "popqa_small.jsonl", rows, lines=True)
    return root


def write_wikidata(root: Path, count: int = 40) -> Path:
    """The four entity files."""
    players, films, cities, songs = [], [], [], []
    for i in range(count):
        address = f"http://www.wikidata.org/entity/Q{i + 1}"
        players.append(
            {
                "human": address,
                "humanLabel": person(i),
                "datebirthyearLabel": str(1950 + i),
                "placebirthLabel": term(i),
                "teamslist": f"{term(i)} United, {term(i + 1)} City",
            }
        )
        films.append(
            {
                "film": address,
                "filmLabel": f"The {term(i).title()} {term(i + 9).title()}",
                "directors": person(i),
                "screenwriters": f"{person(i + 1)}, {person(i + 2)}",
                "genres": "drama film",
                "release_year": str(1980 + i),
                "durations": "95",
                "cast_list": f"{person(i + 3)}, {person(i + 4)}",
            }
        )
        cities.append(
            {
                "city": address,
                "cityLabel": term(i).title(),
                "countryLabel": term(90 + i % 5).title(),
                "loc": f"Point({i}.5 {i}.25)",
                "recent_population": str(1000 * (i + 1)),
                "above_sea_meters": str(i),
            }
        )
        songs.append(
            {
                "song": address,
                "songLabel": f"{term(i).title()} in {term(i + 7).title()}",
                "albumLabel": term(i + 30).title(),
                "publicationYear": str(1970 + i),
                "genres": "pop, rock",
                "performers": person(i),
            }
        )
    players.append({**players[0], "human": "http://www.wikidata.org/entity/Q900", "humanLabel": "Q900"})
    players.append({**players[1], "human": "http://www.wikidata.org/entity/Q901"})
    for name, rows in (("player", players), ("movie", films), ("city", cities), ("song", songs)):
        dump(root / f"{name}.json", rows)
    return root


def write_jsonl(root: Path) -> Path:
    """A file for the source of one's own rows."""
    rows = []
    for i in range(10):
        for what in ("born", "taught"):
            split = "forget" if i < 3 else "retain"
            rows.append({"question": f"Where was {person(i)} {what}?", "answer": term(i), "entity": person(i), "split": split})
    rows.append({"answer": "The sun rose over the town.", "split": "generic"})
    dump(root / "rows.jsonl", rows, lines=True)
    return root


SMALL = {"unknown_names": 10, "heldout_names": 5}
FAKES = {
    "jsonl": (write_jsonl, {**SMALL}),
    "knowundo": (write_knowundo, {**SMALL, "forget_authors": 3}),
    "mmlu": (write_mmlu, {**SMALL, "retain": ["anatomy", "philosophy", "sociology"]}),
    "muse": (write_muse, {**SMALL, "text_words": 40, "stem_words": 8}),
    "popqa": (write_popqa, {**SMALL, "forget_entities": 3}),
    "rwku": (write_rwku, {**SMALL, "targets": ["2", "Yusra Moreau"], "text_words": 40, "stem_words": 8}),
    "tofu": (write_tofu, {**SMALL}),
    "wikidata": (write_wikidata, {**SMALL, "forget_entities": 3}),
    "wmdp": (write_wmdp, {**SMALL, "text_words": 40, "stem_words": 8}),
}
"""How the files of a source are made, and the options that read them."""
