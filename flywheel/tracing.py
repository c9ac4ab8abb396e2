"""Every knob of what is traced; part of `config`, which holds it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceConfig:
    """Spans: which episodes have them, and how many are kept."""

    sample_share: float = 0.05
    """share of episodes with a span for each request, chosen by a hash of the episode's id; failed and lost ones and
    those around a signal have one for each step in any case. A span takes some 400 bytes of disk"""
    around: int = 3
    """episodes kept on either side of where a signal's evidence begins, and of the one that raised it"""
    flush_s: float = 0.25
    """seconds over which the spans of one process share a message, and a durable commit"""
    max_waiting: int = 20_000
    """spans that a process holds while their store is away; further ones are lost, and counted"""
    max_spans: int = 500_000
    """spans in traces.sqlite, some 200 MB: the oldest go first, those of failures and signals after all others"""
