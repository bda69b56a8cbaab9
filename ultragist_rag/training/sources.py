"""Where the data of the bundled model come from, and under which licences.

Is        a table of facts by file name.
Flow      errors -> [sources] -> record.
Change    add a data set: one line.
Not here  reading the files -> samples.py; which of them a run read -> record.py.
Holds     shards of one set (`wikipedia-00`, `wikipedia-01`) have one entry.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ultragist_rag.errors import TrainingError

__all__ = ["DATA_SETS", "DataSet", "data_set"]


class DataSet(NamedTuple):
    """A published data set.

    Attributes:
        name: What it is.
        source: Its repository on GitHub.
        licence: In short.
    """

    name: str
    source: str
    licence: str


DATA_SETS = {
    "train/factbook": DataSet("CIA World Factbook, country profiles", "factbook/factbook.json", "public domain, CC0"),
    "train/wikipedia": DataSet("English Wikipedia, sample of 2019", "chinapedia/wikipedia.abstract.en", "CC BY-SA 3.0"),
    "train/openstax": DataSet("OpenStax textbooks", "openstax/osbooks-*", "CC BY 4.0 at the commits used"),
    "train/books": DataSet(
        "novels up to 1927; addresses of US presidents",
        "computationalstylistics/100_english_novels, nltk/nltk_data",
        "public domain",
    ),
    "train/tech": DataSet(
        "PEPs, EIPs, The Rust Programming Language, OWASP cheat sheets",
        "python/peps, ethereum/EIPs, rust-lang/book, OWASP/CheatSheetSeries",
        "public domain or CC0, CC0, MIT or Apache-2.0, CC BY-SA 4.0",
    ),
    "train/medquad": DataSet("MedQuAD, health pages", "abachaa/MedQuAD", "CC BY 4.0"),
    "train/dialogues": DataSet(
        "Schema-Guided Dialogue", "google-research-datasets/dstc8-schema-guided-dialogue", "CC BY-SA 4.0"
    ),
    "qa_train/factbook_template_qa": DataSet(
        "CIA World Factbook, questions from templates", "factbook/factbook.json", "public domain, CC0"
    ),
    "qa_train/qmsum_train": DataSet("QMSum, meetings", "Yale-LILY/QMSum", "MIT; AMI and ICSI transcripts CC BY 4.0"),
    "qa_train/covidqa_200423": DataSet(
        "COVID-QA", "deepset-ai/COVID-QA", "Apache-2.0; articles of CORD-19 under their own"
    ),
    "qa_train/selqa_dev": DataSet("SelQA, dev", "emorynlp/selqa", "Apache-2.0; Wikipedia CC BY-SA"),
    "qa_train/policyqa_dev": DataSet("PolicyQA, dev", "wasiahmad/PolicyQA", "MIT"),
    "qa_train/qamr_wiki": DataSet("QAMR, dev and test", "uwnlp/qamr", "MIT; Wikipedia CC BY-SA, Wikinews CC BY"),
    "qa_train/wikitablequestions_train": DataSet(
        "WikiTableQuestions, training", "ppasupat/WikiTableQuestions", "CC BY-SA 4.0"
    ),
    "qa_train/medquad": DataSet("MedQuAD, questions and answers", "abachaa/MedQuAD", "CC BY 4.0"),
}
"""Data sets by folder and name of their file, without shard and endings."""

_SHARD_AND_ENDINGS = re.compile(r"(-\d+)?(\.jsonl)?(\.xz)?$")


def data_set(file: str) -> DataSet:
    """Look up the data set of a file.

    Args:
        file: Path within the data folder, such as `train/wikipedia-00.jsonl.xz`; endings may be left out.

    Returns:
        What is known of it.

    Raises:
        TrainingError: If nothing is.

    Example:
        >>> data_set("train/wikipedia-03.jsonl.xz").licence
        'CC BY-SA 3.0'
    """
    name = _SHARD_AND_ENDINGS.sub("", file)
    if name not in DATA_SETS:
        raise TrainingError(
            f"nothing is known of the data file {file!r}, but a model needs to name its sources and their licences. "
            f"Add {name!r} to DATA_SETS in ultragist_rag/training/sources.py."
        )
    return DATA_SETS[name]
