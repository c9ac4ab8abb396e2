"""Schemathesis against the OpenAPI document: whatever it makes up, no answer is a server's error."""

from __future__ import annotations

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="add schemathesis to the environment to run these")
