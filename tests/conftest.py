"""Every test run checks the shapes that stand in the signatures, offline and on one thread per process.

The hook is installed here, before anything imports the package, and nowhere else: at run time nothing is checked.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

install_import_hook("ultragist_rag", "beartype.beartype")
