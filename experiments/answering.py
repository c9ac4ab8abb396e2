"""The other end of `experiments.peers`: for scripts that run in a peer's environment, where nothing of ours is.

from answering import answer     # a script's own directory is on its path
answer(train=train)              # {"do": "train", "seed": 7} -> train(seed=7), which returns what JSON can hold
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any


def answer(**calls: Callable[..., Any]) -> None:
    """Answer requests until the input ends; what a call prints goes to stderr, so that only answers are in the output.

    Raises what a call raises, which ends the process.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(calls[request.pop("do")](**request)), file=out, flush=True)
