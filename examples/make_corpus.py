"""Write the example corpus: one profile for each held-out country, and questions about them.

    python examples/make_corpus.py            profiles and questions from corpus_facts.json
    python examples/make_corpus.py --data D   first take the facts anew from D/train/factbook.jsonl.xz

The facts are figures of the CIA World Factbook (public domain); every sentence is ours.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from ultragist_rag.training.country_fields import FIELDS
from ultragist_rag.training.profiles import facts_of, held_out, profile_lines, profile_text, question, read_figures
from ultragist_rag.training.samples import read_records

HERE = Path(__file__).parent
FACTS, QUESTIONS, CORPUS = HERE / "corpus_facts.json", HERE / "corpus_questions.jsonl", HERE / "corpus"
N_QUESTIONS = 300


def take_facts(data: Path) -> dict[str, dict[str, str]]:
    """Facts of the held-out countries; titles that are file names are dropped."""
    records = read_records(data / "train" / "factbook.jsonl.xz")
    titles = held_out([record["title"] for record in records])
    kept = [record for record in records if record["title"] in titles and "/" not in record["title"]]
    return {record["title"]: facts_of(read_figures(record["text"])) for record in kept}


def write_corpus(countries: dict[str, dict[str, str]]) -> None:
    """Write profiles and questions; every third question is in a wording that training never sees."""
    CORPUS.mkdir(exist_ok=True)
    asked = []
    for name, facts in sorted(countries.items()):
        sections = profile_lines(name, facts, random.Random(name))
        path = CORPUS / f"{name.lower().replace(' ', '-')}.md"
        path.write_text(profile_text(name, sections), encoding="utf-8")
        asked += [(name, field, facts[field.key]) for field in FIELDS if field.key in facts]
    rng = random.Random(0)
    lines = []
    for number, (name, field, value) in enumerate(rng.sample(asked, N_QUESTIONS)):
        heldout = number % 3 == 0
        text = question(field, name, rng, heldout=heldout)
        entry = {"question": text, "answer": value, "title": name, "section": field.section, "heldout": heldout}
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    QUESTIONS.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Read the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with train/factbook.jsonl.xz")
    data = parser.parse_args().data
    if data is not None:
        facts = take_facts(data)
        FACTS.write_text(json.dumps(facts, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_corpus(json.loads(FACTS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
