"""What a process of RLlib's holds before it begins is for good, and is not looked through for garbage again."""

from __future__ import annotations

import gc


def freeze() -> None:
    """Leave all that was made so far out of garbage collection.

    Ray, RLlib and torch are 400,000 objects: a look through them takes 0.2 s, as long as ten iterations' sampling.
    """
    gc.collect()
    gc.freeze()
