"""Draw samples that ask for exact values: needles in profiles, pairs of keys and values, quotations.

Is        seeded string work: places and facts in, documents and questions out; texts in, questions for their words out.
Flow      profiles -> [exact_samples] -> samples.
Change    what needles say, how pairs are laid out.
Not here  the profiles around needles -> profiles.py.
Holds     a value that is asked for stands, letter by letter, in one document.
"""

from __future__ import annotations

import json
import random
import re
import uuid
from collections.abc import Callable, Mapping

from ultragist_rag.training.country_fields import FIELDS, SECTIONS, TRAIN_FRAMES
from ultragist_rag.training.profiles import Pairs, invented_word, profile_lines

Draw = Callable[[random.Random], tuple[str, Mapping[str, str]]]

_NUMBERED = ("record number", "record number", "licence number", "file number", "serial number", "access code", "key")
_NAMED = ("patron", "nickname", "founder", "motto", "emblem", "mascot")
_WORDED = tuple(field.label for field in FIELDS if field.keep in {"clause", "first", "quoted"})
_STATEMENTS = ("The {n} of {c} is {v}.", "The {n} of {c} is {v}.", "{c} has the {n} {v}.", "A {n} of {c} is {v}.")
_QUOTE_QUESTIONS = ('Which words follow "{c}"?', 'Quote what comes after "{c}".', 'How does "{c}" go on?')
_CUE, _QUOTE = 5, 16
"""Most words that are given, and that are asked for."""
_KEY_QUESTIONS = ("What is the value of the key {k}?", "What is the value of the key {k}?", "Which value has {k}?")


def exact_value(kind: str, rng: random.Random) -> str:
    """A value of a kind: word, number, long or uuid."""
    if kind == "word":
        return " ".join(_name(rng) for _ in range(rng.choice((1, 1, 1, 2))))
    if kind == "number":
        n_digits = rng.randint(3, 8)
        number = rng.randrange(10 ** (n_digits - 1), 10**n_digits)
        return f"{number:,}" if rng.random() < 0.7 else str(number)
    if kind == "long":
        return f"{rng.randrange(10**11, 10**12):,}"
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def needle_documents(
    draw: Draw, count: int, lines: tuple[int, int], kinds: Mapping[str, float], rng: random.Random
) -> tuple[list[str], Pairs]:
    """Profiles of some places, each with a sentence that tells an exact value.

    Args:
        draw: Draws a place and its facts.
        count: Documents.
        lines: Fewest and most sentences beside the needle.
        kinds: Shares of the kinds of values.
        rng: The generator.

    Returns:
        Documents, and a question for every needle.
    """
    documents: list[str] = []
    pairs: Pairs = []
    kind = rng.choices(list(kinds), weights=list(kinds.values()))[0]
    alike = rng.random() < 0.6
    labels = _NAMED + _WORDED if kind == "word" else _NUMBERED
    shared = rng.choice(labels)
    for _ in range(count):
        name, facts = draw(rng)
        section = rng.choice(SECTIONS)
        label = shared if alike else rng.choice(labels)
        told = [
            line.text
            for line in profile_lines(name, dict(facts), rng)[section]
            if line.field and line.field.label != label
        ]
        told = rng.sample(told, min(len(told), rng.randint(*lines)))
        value = exact_value(kind, rng)
        statement = rng.choice(_STATEMENTS)
        told.insert(rng.randint(0, len(told)), _fill(statement, label, name, value))
        documents.append(f"{name} - {section}\n\n" + "\n".join(told))
        pairs.append((_fill(rng.choice(TRAIN_FRAMES), label, name, value), value))
    return documents, pairs


def pair_documents(
    count: int, lines: tuple[int, int], kinds: Mapping[str, float], rng: random.Random
) -> tuple[list[str], Pairs]:
    """JSON objects with some pairs each, and questions for the values of keys.

    Args:
        count: Documents.
        lines: Fewest and most pairs of a document.
        kinds: Shares of the kinds of values.
        rng: The generator.

    Returns:
        Documents and questions.
    """
    documents: list[str] = []
    pairs: Pairs = []
    kind = rng.choices(list(kinds), weights=list(kinds.values()))[0]
    key_kind = rng.choice(("word", kind, kind))
    for _ in range(count):
        entries = {exact_value(key_kind, rng): exact_value(kind, rng) for _ in range(max(1, rng.randint(*lines) // 2))}
        documents.append(json.dumps(entries, indent=0, ensure_ascii=False))
        pairs += [(rng.choice(_KEY_QUESTIONS).replace("{k}", key), value) for key, value in entries.items()]
    return documents, pairs


def quote_pairs(documents: list[str], most: int, rng: random.Random) -> Pairs:
    """Questions for what stands behind some words, up to the end of their line: nearly every token can be asked for.

    Args:
        documents: What is read.
        most: Questions at most.
        rng: The generator.

    Returns:
        Questions about words that stand in the documents once, and what follows them.
    """
    lines = [(line, list(re.finditer(r"\S+", line))) for document in documents for line in document.splitlines()]
    places = [(line, words[at:]) for line, words in lines for at in range(0, len(words) - _CUE, _QUOTE // 2)]
    everything = "\n".join(documents)
    pairs: Pairs = []
    for line, words in rng.sample(places, min(len(places), 2 * most)):
        n_words = rng.randint(2, _CUE)
        following = words[n_words : n_words + _QUOTE]
        cue = line[words[0].start() : words[n_words - 1].end()]
        if everything.count(cue) == 1 and len(pairs) < most:
            told = line[following[0].start() : following[-1].end()]
            pairs.append((rng.choice(_QUOTE_QUESTIONS).format(c=cue), told))
    return pairs


def _name(rng: random.Random) -> str:
    word = ""
    while len(word) < 3:
        word = invented_word(rng)
    return word.capitalize()


def _fill(wording: str, label: str, name: str, value: str) -> str:
    return wording.replace("{n}", label).replace("{c}", name).replace("{v}", value)
