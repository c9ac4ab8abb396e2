"""A verdict's page and its JSON: every outcome, nothing but text from anybody's strings, nothing lost."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flywheel import verdicts as signed
from flywheel.config import GateConfig
from flywheel.errors import FlywheelError, UsageError
from flywheel.gate import SafetyGate
from flywheel.records import Check, Trial, Verdict
from flywheel.report import verdict_file
from flywheel.report.context import recorded
from flywheel.report.markup import Markup, tag
from flywheel.report.verdict import page, policy, style
from flywheel.report.worlds import SHOWN
from flywheel.task import EdgeCase, Parameter
from flywheel.testing import load_linear
from tests.report.verdicts import TASK, context, verdict

EVIL = "</style><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;\ud800"
KINDS = ("pass", "fail", "inconclusive")
VOID = ("meta", "link", "br")


class Read(HTMLParser):
    """A page as a browser takes it apart; each element has to be closed where it should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.mark.parametrize("kind", KINDS)
def test_every_outcome_begins_with_its_word_and_its_reason(kind: str) -> None:
    found = verdict(kind)
    assert found.outcome == kind
    read = Read(page(found, context()))
    (heading,) = re.findall("<h1>(.*?)</h1>", page(found, context()))
    failed = ", ".join(check.name.replace("_", " ") for check in found.checks if check.passed is False)
    assert (kind == "fail") == ("failure rate" in failed and "edge cases" in failed)
    expected = {"pass": "Passed", "fail": f"Refused: {failed}", "inconclusive": "Undecided: the simulation broke"}
    assert heading == expected[kind]
    assert all(check.note in read.text for check in found.checks)
    assert all(word in read.text for word in (found.digest, found.task, found.config, found.simulator, str(found.seed)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_needs_nothing_else_and_runs_nothing(kind: str) -> None:
    read = Read(page(verdict(kind), context()))
    used = {name for name, _ in read.tags}
    assert not used & {"script", "iframe", "img", "form", "object", "embed", "base"}
    for name, attributes in read.tags:
        assert not [each for each in attributes if each.startswith("on") or each == "style"], name
        places = [attributes[each] or "" for each in ("src", "href") if each in attributes]
        assert all(place.startswith("data:image/svg+xml;base64,") for place in places)
    assert "url(" not in style() and "@import" not in style()
    (allowed,) = [a["content"] for name, a in read.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert allowed == policy() and "unsafe" not in policy() and policy().startswith("default-src 'none'")


@pytest.mark.parametrize("kind", KINDS)
def test_tables_have_headers_and_pictures_have_words(kind: str) -> None:
    read = Read(page(verdict(kind), context()))
    cells = [attributes for name, attributes in read.tags if name == "th"]
    assert cells and all(attributes.get("scope") in ("row", "col") for attributes in cells)
    pictures = [attributes for name, attributes in read.tags if name == "svg"]
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in pictures)
    names = [name for name, _ in read.tags]
    assert names.count("caption") == names.count("table")


def test_whatever_strings_hold_is_only_text() -> None:
    task = dataclasses.replace(
        TASK,
        name=EVIL,
        parameters=tuple(dataclasses.replace(each, name=each.name + EVIL) for each in TASK.parameters),
        edge_cases=(EdgeCase(EVIL),),
        drift={},
    )
    usual = verdict("fail")

    def renamed(trials: tuple[Trial, ...]) -> tuple[Trial, ...]:
        other = {"nominal": "nominal", "stress": "stress", "cells": "cells", "search": "search"}
        return tuple(
            dataclasses.replace(
                each,
                scenario=other.get(each.scenario, EVIL),
                parameters={name + EVIL: value for name, value in each.parameters.items()},
                episode=EVIL + each.episode,
            )
            for each in trials
        )

    checks = tuple(dataclasses.replace(each, name=each.name + EVIL, note=EVIL) for each in usual.checks)
    told = context(task, policy=EVIL, standing=EVIL, command=("flywheel", EVIL), replay=(EVIL,), source=EVIL)
    evil = dataclasses.replace(
        usual, digest=EVIL, baseline=EVIL, checks=checks, trials=renamed(usual.trials), rivals=renamed(usual.rivals)
    )
    text = page(evil, told)
    read = Read(text)
    assert {name for name, _ in read.tags} == {name for name, _ in Read(page(usual, context())).tags}
    assert not [attributes for _, attributes in read.tags if any(each.startswith("on") for each in attributes)]
    assert EVIL.replace("\ud800", "?") in "".join(read.texts)
    assert text.encode("utf-8")


@given(st.text(), st.text())
def test_markup_cannot_be_broken_out_of(text: str, value: str) -> None:
    read = Read(tag("p", {"title": value}, text))
    assert [name for name, _ in read.tags] == ["p"]
    assert Read(tag("p", {}, Markup(tag("b", {}, "x")))).tags[1][0] == "b"
    assert Read(tag("p", {}, str(tag("b", {}, "x")) + "")).text == "<b>x</b>"


@pytest.mark.parametrize("kind", KINDS)
def test_the_json_gives_back_the_same_verdict(kind: str, tmp_path: Path) -> None:
    found = dataclasses.replace(verdict(kind), signature="ab" * 64)
    path, html = verdict_file.write(verdict_file.room(tmp_path / "reports"), found, context())
    assert (path.name, html.suffix) == (f"verdict-{found.digest[:8]}-3.json", ".html")
    plain = json.loads(path.read_text())
    assert (plain["schema_version"], plain["task_name"], plain["task"]) == (1, "cartpole", found.task)
    assert signed.encode(verdict_file.read(path)) == signed.encode(found)
    assert path.name in html.read_text("utf-8")
    assert sorted(each.name for each in path.parent.iterdir()) == [html.name, path.name]  # no half of a file is left


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}', "<html>"])
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "verdict-x.json").write_text(text)
    with pytest.raises(FlywheelError, match=r"verdict-x\.json is no verdict"):
        verdict_file.read(tmp_path / "verdict-x.json")


def test_a_file_of_a_later_version_is_not_guessed_at(tmp_path: Path) -> None:
    plain = json.loads(verdict_file.encode(verdict("pass"), "cartpole"))
    (tmp_path / "new.json").write_text(json.dumps({**plain, "schema_version": 2}))
    with pytest.raises(FlywheelError, match="schema version 1 or older"):
        verdict_file.read(tmp_path / "new.json")


def test_what_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="another --out"):
        verdict_file.room(tmp_path / "file")


def test_each_listed_trial_has_the_command_that_plays_it_again() -> None:
    found, told = verdict("fail"), context(replay=("flywheel", "gate", "--policy", "my policy.onnx", "--trial"))
    text = Read(page(found, told)).text
    failed = [trial for trial in found.trials if trial.failed and trial.scenario == "nominal"]
    assert len(failed[:SHOWN]) > 0
    commands = [shlex.join(told.replayed(trial.episode)) for trial in found.trials]
    assert sum(command in text for command in commands) >= SHOWN
    assert all(command.startswith("flywheel gate --policy 'my policy.onnx' --trial ") for command in commands)


def test_long_lists_are_bounded_and_say_so() -> None:
    usual = verdict("fail")
    many = tuple(
        dataclasses.replace(usual.trials[0], seed=i, episode=f"{i:032x}", failed=True, total=float(i % 400))
        for i in range(20_000)
    )
    rivals = tuple(dataclasses.replace(each, total=500.0, failed=False) for each in many)
    text = page(dataclasses.replace(usual, trials=many, rivals=rivals), context())
    assert len(text) < 1_000_000
    assert text.count("19,950 more are not shown; the JSON has all: verdict.json.") == 2  # trials, and pairs


def test_a_large_suite_shows_what_was_not_mastered_first() -> None:
    usual = verdict("pass").trials[0]
    suite = tuple(
        dataclasses.replace(usual, scenario=f"suite:fork-{i:03}", seed=i, episode=f"{i:032x}", failed=i == 150)
        for i in range(200)
    )
    read = Read(page(dataclasses.replace(verdict("pass"), trials=suite), context()))
    assert "151 more are not shown" not in read.text and "150 more are not shown" in read.text
    assert read.text.index("fork-150") < read.text.index("fork-000") and "a scenario of the suite" in read.text


def test_the_budget_is_told_as_it_was_shared(tmp_path: Path) -> None:
    text = Read(page(verdict("pass"), context())).text
    assert "others before it (2): 6.67 % this one: 0.833 % those after it: 2.5 %" in re.sub(" +", " ", text)
    other = dataclasses.replace(verdict("pass"), config="00" * 32)
    assert "another configuration of the gate" in page(other, context())


def test_a_spent_budget_and_a_broken_simulator_leave_no_trials_and_still_a_page() -> None:
    spent = SafetyGate(TASK, GateConfig()).judge(load_linear(TASK), seed=1, now=0.0, tries=10_000)
    assert spent.outcome == "inconclusive" and not spent.trials
    read = Read(page(spent, context(config=GateConfig())))
    assert "Undecided: the error budget is spent" in read.text and "Where it was tried" not in read.text


def test_pairs_tell_who_failed_and_by_how_much() -> None:
    text = Read(page(verdict("fail"), context())).text
    assert re.search(
        r"Of \d+ pairs in the same worlds under the same draws \d+ differ: in \d+ only the candidate", text
    )
    alone = dataclasses.replace(verdict("fail"), rivals=())
    assert "No world of this verdict was played by the policy in service, too." in page(alone, context())
    assert "no policy in service to compare with" in page(dataclasses.replace(alone, baseline=None), context())


def test_a_check_that_nobody_knows_yet_is_shown_as_it_is() -> None:
    new = Check(name="brand_new", value=3.0, interval=(1.0, 12_345.0), bound=7.0, passed=None, note="see there")
    odd = Check(name="cost", value=float("nan"), interval=(0.0, float("inf")), bound=0.005, passed=None)
    found: Verdict = dataclasses.replace(verdict("pass"), checks=(new, odd), outcome="inconclusive")
    read = Read(page(found, context()))
    assert "Undecided: brand new, cost" in read.text and "12,345" in read.text


def test_a_task_without_parameters_or_margin_has_a_page() -> None:
    task = dataclasses.replace(TASK, parameters=(), margin=None, edge_cases=(), drift={})
    found = SafetyGate(task).judge(load_linear(task), seed=1, now=0.0)
    text = page(found, context(task))
    assert "Cells of the parameter space" not in text and "at its return" in text
    one = dataclasses.replace(TASK, parameters=(Parameter("gravity", 9.8, 9.8, 9.8),), edge_cases=(), drift={})
    assert "Cells of the parameter space" not in page(verdict("pass"), context(one))


def test_a_recorded_verdict_names_what_made_it() -> None:
    found = dataclasses.replace(verdict("pass"), signature="ab" * 64)
    told = recorded(found, 4, TASK, GateConfig(), "runs/my run")
    text = Read(page(found, told)).text
    assert "policy abababab (version 4)" in text and "Signed and recorded" in text
    words = shlex.split(shlex.join(told.command))
    assert words[:6] == ["flywheel", "gate", "--policy", "ab" * 6, "--run-dir", "runs/my run"]
    assert words[6:10] == ["--seed", "3", "--baseline", "cd" * 6] and "length=0.5" in words


def test_texts_stand_out_from_what_is_behind_them() -> None:
    light, dark = style().split("@media screen and (prefers-color-scheme: dark)")
    dark = dark.split("/* A verdict's page")[0]
    themes = [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", part)) for part in (light, dark)]
    for theme in themes:
        for ink, ground in (
            ("ink", "paper"), ("muted", "card"), ("muted", "paper"), ("muted", "hover"), ("bad", "card"),
            ("bad", "bad-soft"), ("good", "good-soft"), ("change", "warn-soft"), ("ink", "good-soft"),
            ("ink", "bad-soft"), ("ink", "warn-soft"),
        ):  # fmt: skip
            assert _contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)


def _contrast(one: str, other: str) -> float:
    """Return the contrast of two colours (WCAG 2.2)."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)
