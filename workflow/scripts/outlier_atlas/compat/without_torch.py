"""transformers without torch, for jobs that need only tokenizers and configurations.

`AutoConfig` and `AutoTokenizer` import torch and the code of models if torch is installed, which
takes several seconds. They give the same results without it.
"""

from __future__ import annotations

import os
import sys
from typing import Any


def hide_torch() -> None:
    """Let every import of torch fail in this process, unless torch is already imported.

    transformers then behaves as if torch were not installed. `None` in `sys.modules` is Python's
    own way to say that a module cannot be imported.
    """
    if "torch" not in sys.modules:
        modules: dict[str, Any] = sys.modules
        modules["torch"] = None
        # Otherwise transformers prints that PyTorch was not found.
        os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
