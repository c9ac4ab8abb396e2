"""An interrupt that Python swallows comes again, and one that is on its way disturbs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import os, signal, time
from contextlib import contextmanager
from flywheel import interrupt
interrupt.arm()
"""
SWALLOWED = """
class Swallows:
    def __del__(self):
        os.kill(os.getpid(), signal.NUMBER)
        time.sleep(0.01)
swallows = Swallows()
try:
    del swallows
    print("swallowed", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    interrupt.handled()
    print("raised again", flush=True)
time.sleep(3 * interrupt.AGAIN_S)
print("once", flush=True)
"""
ON_ITS_WAY = """
class Slow:
    def __enter__(self):
        return self
    def __exit__(self, *_):
        time.sleep(3 * interrupt.AGAIN_S)
        print("closed", flush=True)
@contextmanager
def slow():
    try:
        yield
    finally:
        time.sleep(3 * interrupt.AGAIN_S)
        print("closed, too", flush=True)
try:
    with Slow(), slow():
        os.kill(os.getpid(), signal.NUMBER)
        time.sleep(60)
except KeyboardInterrupt:
    interrupt.handled()
print("handled", flush=True)
"""

OTHERWISE = """
class Fails:
    def __del__(self):
        raise ValueError("told")
Fails()
"""


def printed(script: str, number: str) -> list[str]:
    """Return what a script prints; no interrupt shows a traceback, and nothing else is kept from anybody."""
    command = [sys.executable, "-c", BEGIN + script.replace("NUMBER", number) + OTHERWISE]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stderr.count("Traceback") == ended.stderr.count("ValueError: told") == 1, ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_an_interrupt_that_was_swallowed_is_raised_again_until_it_is_handled(number: str) -> None:
    assert printed(SWALLOWED, number) == ["swallowed", "raised again", "once"]


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_one_that_is_on_its_way_lets_things_be_closed(number: str) -> None:
    assert printed(ON_ITS_WAY, number) == ["closed, too", "closed", "handled"]
