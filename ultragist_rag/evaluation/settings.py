"""What an evaluation measures: suites, methods, ratios, sizes, data; checked once.

Is        a frozen record.
Flow      task, methods -> [settings] -> runner, extras, cli_eval.
Change    what can be asked for, and how it is checked.
Holds     what it accepts can be run; equal settings give equal lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ultragist_rag.errors import InputError
from ultragist_rag.evaluation.extras import resolve
from ultragist_rag.evaluation.methods import check_methods
from ultragist_rag.evaluation.peers import is_peer
from ultragist_rag.memory.decoding import Decoding

__all__ = ["EvalSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """What is measured.

    Attributes:
        suites: Names of suites or tasks; `all` for all.
        ratios: Raw tokens per gist token.
        methods: As `check_methods` takes them; `full` is always measured.
        budget: Bytes of keys and values that a context may take; None for those of gists at each ratio.
        limit: Samples of each task, spread over it evenly; None for all.
        context: Tokens that a context may have; None for half of the positions of the model, at most 16 384.
        seed: Of everything that tasks draw.
        source_bias: How strongly answers that are decoded are held to the words of their prompts, see `Decoding`.
        data: Folder with data sets, or by task its own folder, file or `hub:` name; the name of no task is the folder.
    """

    suites: tuple[str, ...] = ("rag",)
    ratios: tuple[int, ...] = (4, 8, 16, 32)
    methods: tuple[str, ...] = ("full", "gist")
    budget: int | None = None
    limit: int | None = 100
    context: int | None = None
    seed: int = 0
    source_bias: float = 0.0
    data: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check numbers and names.

        Raises:
            InputError: If one is out of range or unknown.
        """
        for name in ("budget", "limit", "context"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} is {value!r}, but must be a whole number of at least 1.")
        wrong = [one for one in self.ratios if isinstance(one, bool) or not isinstance(one, int) or one < 1]
        if wrong or not self.ratios:
            raise InputError(f"ratios are {list(self.ratios)}, but must be whole numbers of at least 1, such as 4,8.")
        resolve(self.suites)
        object.__setattr__(self, "methods", tuple(check_methods(self.methods)))
        bias = Decoding.of({"source_bias": self.source_bias}).source_bias
        peers = [name for name in self.methods if is_peer(name)]
        if bias and peers:
            raise InputError(f"source_bias is {bias}, which methods of other packages do not know: leave out {peers}.")
        for name in self.data:
            if name and ("/" not in name or not _is_known(name)):
                raise InputError(f"data are given for {name!r}, which is no task: give suite/name=PLACE.")


def _is_known(name: str) -> bool:
    try:
        resolve([name])
    except InputError:
        return False
    return True
