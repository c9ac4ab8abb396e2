"""The report says what happened: from plain records, and from a run directory on the disk."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console

from flywheel import archive, report
from flywheel.config import Config
from flywheel.records import Episode, Plan, Release, Signal, Trial, Turn, Verdict
from flywheel.report import picture
from flywheel.report.summary import Played, phases, summarize
from flywheel.store.intake import Intake

OLD, BAD, NEW = "a" * 64, "b" * 64, "c" * 64
TRIAL = Trial(seed=1, parameters={}, scenario="nominal", total=500.0, length=500, failed=False, margin=1.0, episode="x")


def verdict(digest: str, at: float, outcome: Any = "pass") -> Verdict:
    return Verdict(
        digest=digest,
        baseline=None,
        task="t",
        config="c",
        simulator="s",
        outcome=outcome,
        checks=(),
        trials=(TRIAL,) * 100,
        seed=1,
        cost_s=1.0,
        judged_at=at,
        valid_until=at + 1,
    )


def turn(number: int, digest: str, at: float, *, outcome: Any = "pass", signals: tuple[Signal, ...] = ()) -> Turn:
    release = Release(digest=digest, stage="full", share=1.0, previous=None, released_at=at + 0.5)
    return Turn(
        number=number,
        plan=Plan(strategy="retrain_prioritize_recent", reasons=("because",), signals=signals),
        artifact=None,
        verdict=verdict(digest, at, outcome),
        release=release if outcome == "pass" else None,
        evidence={"seconds": {"train": 10.0, "gate": 1.5}},
    )


SIGNAL = Signal(
    kind="shift_detected",
    monitor="world",
    digest=OLD,
    value=3e4,
    threshold=2e4,
    since_episode="e0101",
    at_episode="e0103",
    evidence={},
    at=104.0,
)
TURNS = [
    turn(1, OLD, 0.0),
    turn(2, BAD, 140.0, outcome="fail", signals=(SIGNAL,)),
    turn(3, NEW, 150.0, signals=(SIGNAL,)),
]


def production(num: int = 220) -> list[Played]:
    """One episode a second: 100 of the old world, 51 of the changed one on the old policy, then the new policy."""

    def total(i: int) -> float:
        return 500.0 if i < 100 or i > 150 else 20.0

    return [
        Played(
            id=f"e{i:04d}", started_at=float(i + 1), digest=OLD if i <= 150 else NEW, total=total(i), changed=i >= 100
        )
        for i in range(num)
    ]


def summary(turns: list[Turn], played: list[Played]) -> dict[str, Any]:
    counts = {"acknowledged": len(played), "stored": len(played), "broke_off": 0}
    return summarize(turns, played, requests={"total": 1000, "errors": 0}, episodes=counts)


def test_the_summary_has_the_keys_and_means_that_were_agreed() -> None:
    assert summary(TURNS, production()[::-1]) == {
        "turns": [
            {
                "number": number,
                "strategy": "retrain_prioritize_recent",
                "reasons": ["because"],
                "digest": digest,
                "verdict": outcome,
                "sims": 100,
                "released": outcome == "pass",
            }
            for number, digest, outcome in [(1, OLD, "pass"), (2, BAD, "fail"), (3, NEW, "pass")]
        ],
        "production": {"before": 500.0, "after_shift": 20.0, "recovered": 500.0, "episodes": 220},
        "answer": "retrained",
        "detected_after_episodes": 4,
        "seconds": {"train": 30.0, "gate": 4.5},
        "requests": {"total": 1000, "errors": 0},
        "episodes": {"acknowledged": 220, "stored": 220, "broke_off": 0},
    }


def test_without_a_change_everything_on_the_policy_in_service_is_before() -> None:
    quiet = [dataclasses.replace(e, changed=False) for e in production(100)]
    found = summary(TURNS[:1], quiet)
    assert found["production"] == {"before": 500.0, "after_shift": None, "recovered": None, "episodes": 100}
    assert found["detected_after_episodes"] is None


def test_nothing_has_recovered_before_a_new_release() -> None:
    found = summary(TURNS[:2], production(140))
    assert (found["production"]["after_shift"], found["production"]["recovered"]) == (20.0, None)
    assert summary([], [])["production"]["before"] is None


def test_an_alarm_before_the_change_is_not_its_detection() -> None:
    early = dataclasses.replace(SIGNAL, at_episode="e0050", at=51.0)
    assert summary([turn(2, NEW, 60.0, signals=(early,))], production())["detected_after_episodes"] is None
    both = [turn(2, NEW, 60.0, signals=(early,)), turn(3, NEW, 150.0, signals=(SIGNAL,))]
    assert summary(both, production())["detected_after_episodes"] == 4
    lost = dataclasses.replace(SIGNAL, at_episode="never stored")
    assert summary([turn(2, NEW, 150.0, signals=(lost,))], production())["detected_after_episodes"] == 3


def test_an_alarm_that_no_turn_has_answered_yet_is_detected_too() -> None:
    raised = dataclasses.replace(TURNS[0], evidence={"signals": ["an older journal's", dataclasses.asdict(SIGNAL)]})
    assert summary([raised], production())["detected_after_episodes"] == 4
    assert [m.kind for m in picture.marks([raised], production(), "")].count("signal") == 1
    answered = [raised, turn(2, NEW, 150.0, signals=(SIGNAL,))]
    assert summary(answered, production())["detected_after_episodes"] == 4
    earlier = dataclasses.replace(SIGNAL, monitor="failed", at_episode="e0101", at=102.0)
    both = dataclasses.replace(raised, evidence={"signals": [dataclasses.asdict(s) for s in (SIGNAL, earlier)]})
    assert summary([both], production())["detected_after_episodes"] == 2


def test_a_rollback_is_no_release_of_what_was_refused() -> None:
    back = dataclasses.replace(TURNS[1], release=TURNS[0].release)
    assert summary([back], [])["turns"][0]["released"] is False


EARLY = dataclasses.replace(SIGNAL, at_episode="e0050", at=51.0)
QUIET = turn(3, NEW, 150.0)
ALARMED_EARLY = turn(3, NEW, 150.0, signals=(EARLY,))
ROLLED_BACK = dataclasses.replace(turn(3, BAD, 150.0, outcome="fail", signals=(SIGNAL,)), release=QUIET.release)
SEEN = production()
WORSE = [dataclasses.replace(e, total=7.0 if e.digest == NEW else e.total) for e in SEEN]


@pytest.mark.parametrize(
    ("turns", "played", "answer", "headline", "row"),
    [
        (TURNS, SEEN, "retrained", "became 20; a new policy brought back 500", "on the new policy 500.0 100.0%"),
        ([TURNS[0], QUIET], SEEN, "unrelated", "; a policy not trained for it got 500", "a later policy 500.0 100.0%"),
        ([TURNS[0], ALARMED_EARLY], SEEN, "unrelated", "; a policy not trained for it got 500", "not trained for it"),
        ([TURNS[0], ROLLED_BACK], SEEN, "rolled back", "; the earlier policy brought back 500", "put back 500.0"),
        (TURNS[:2], production(140), None, "the return fell from 500 to 20", "on the new policy -"),
        (TURNS, WORSE, "retrained", "became 20; a new policy got 7", "on the new policy 7.0"),
    ],
)
def test_only_what_was_trained_for_the_change_is_said_to_have_cured_it(
    turns: list[Turn], played: list[Played], answer: str | None, headline: str, row: str
) -> None:
    found = summary(turns, played)
    assert found["answer"] == answer
    assert headline in picture._finding("cartpole", phases(turns, played), found["answer"])
    file = io.StringIO()
    Console(file=file, width=80).print(report.table(found))
    assert row in " ".join(file.getvalue().split())


def test_a_quiet_release_takes_no_credit_from_the_one_that_answered_the_change() -> None:
    later = [dataclasses.replace(e, digest=BAD) if e.started_at > 200 else e for e in production()]
    found = summary([*TURNS, turn(4, BAD, 200.0)], later)
    assert found["answer"] == "retrained" and found["production"]["recovered"] == 500.0
    assert len(phases([*TURNS, turn(4, BAD, 200.0)], later).recovered) == 49


def test_marks_stand_where_things_happened() -> None:
    found = picture.marks(TURNS, production(), "length 0.5 → 2")
    assert [(m.kind, m.x) for m in found] == [
        ("verdict", 0.5),
        ("release", 0.5),
        ("change", 100.5),
        ("signal", 104.0),
        ("verdict", 139.5),
        ("verdict", 149.5),
        ("release", 150.5),
    ]
    assert [m.text for m in found][2:5] == [
        "world changes: length 0.5 → 2",
        "shift detected after 4 episodes",
        "gate refuses a candidate (100 simulations)",
    ]


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(1, 60)), max_size=12))
def test_labels_never_collide_and_no_line_crosses_a_text(labels: list[tuple[float, float]]) -> None:
    labels = sorted(labels)
    xs, widths = [x for x, _ in labels], [width for _, width in labels]
    places = picture.rows(xs, widths, right=100.0)
    spans = [(x - w, x) if left else (x, x + w) for x, w, (_, left) in zip(xs, widths, places, strict=True)]
    for i, (start, stop) in enumerate(spans):
        for j in range(len(xs)):
            if i != j:
                meet = max(start, spans[j][0]) < min(stop, spans[j][1])
                assert not (meet and places[i][0] == places[j][0])
                assert not (start < xs[j] < stop and places[j][0] > places[i][0])


def test_a_long_title_is_written_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[float] = []

    def kept(figure: Figure, path: Path, **more: Any) -> None:
        width = max(text.get_window_extent().width for text in figure.texts)
        widths.append(width / figure.bbox.width)

    monkeypatch.setattr(Figure, "savefig", kept)
    for task in ("cartpole", "a task of a very long name " * 5):
        picture.draw(tmp_path / "report.png", TURNS, production(), task=task)
    assert widths[0] < 0.9 < widths[1] < 0.98


@pytest.mark.parametrize("case", ["whole", "no turn", "no episode", "one episode"])
def test_the_picture_is_drawn_whatever_there_is(tmp_path: Path, case: str) -> None:
    turns, played = {
        "whole": (TURNS, production()),
        "no turn": ([], production()),
        "no episode": (TURNS, []),
        "one episode": (TURNS[:1], production(1)),
    }[case]
    picture.draw(tmp_path / "report.png", turns, played, task="cartpole")
    data = (tmp_path / "report.png").read_bytes()
    assert struct.unpack(">I", data[16:20]) == (2400,)


def test_the_closing_table_fits_80_columns_and_a_file() -> None:
    file = io.StringIO()
    Console(file=file, width=80).print(report.table(summary(TURNS, production())))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text and "…" not in text
    for word in (
        "retrain_prioritize_recent",
        "aaaaaaaa",
        "fail",
        "500.0",
        "20.0",
        "noticed after 4 episodes",
        "100.0%",
    ):
        assert word in text


def test_returns_that_are_costs_are_compared_by_their_difference() -> None:
    costs = [dataclasses.replace(e, total=-e.total) for e in production()]
    file = io.StringIO()
    Console(file=file, width=80).print(report.table(summary(TURNS, costs)))
    assert "+0.0 against before" in file.getvalue() and "%" not in file.getvalue()


def stored(played: Played, task: str) -> Episode:
    num = int(played.total)
    return Episode(
        id=played.id,
        origin="production",
        task=task,
        parameters={},
        draw_key=1,
        digests=(played.digest,) * num,
        observations=np.zeros((num + 1, 4), np.float32),
        raw_actions=np.zeros(num, np.int64),
        rewards=np.ones(num),
        logps=np.zeros(num),
        end="terminated",
        failed=False,
        started_at=played.started_at,
        ended_at=played.started_at + 1,
    )


def test_it_is_written_from_the_run_directory_alone(tmp_path: Path) -> None:
    run_dir, played = tmp_path / "run", production()
    with archive.opened(run_dir, Config(), "cartpole", "digest"):
        pass
    for one in TURNS:
        archive.append_turn(run_dir, one)
    store = Intake(run_dir)
    lost = dataclasses.replace(stored(played[5], "t"), id="lost", end="lost")
    store.append([*(stored(e, "t") for e in played), lost])
    store.close()
    (run_dir / archive.TRAFFIC).mkdir()
    lines: list[dict[str, Any]] = [{"kind": "begin", "nominal": {"length": 0.5}, "changed": {"length": 2.0}}]
    lines += [{"kind": "episode", "id": e.id, "changed": e.changed, "acknowledged": True} for e in played]
    lines += [{"kind": "episode", "id": "forgotten", "changed": False, "acknowledged": True}, {"kind": "raised"}]
    text = "".join(json.dumps({**line, "requests": 700, "errors": 1}) + "\n" for line in lines)
    (run_dir / archive.TRAFFIC / "client_0.jsonl").write_text(text)

    found = report.write(run_dir)
    assert found == json.loads((run_dir / report.SUMMARY).read_text())
    assert found["production"] == {"before": 500.0, "after_shift": 20.0, "recovered": 500.0, "episodes": 220}
    assert found["episodes"] == {"acknowledged": 221, "stored": 220, "broke_off": 1}
    assert found["requests"] == {"total": 700, "errors": 1}
    assert found["detected_after_episodes"] == 4
    assert (run_dir / report.PICTURE).exists()


def test_a_store_that_was_killed_while_it_was_made_is_empty(tmp_path: Path) -> None:
    with archive.opened(tmp_path / "run", Config(), "cartpole", "digest"):
        (tmp_path / "run" / "store.sqlite").touch()
        found = report.write(tmp_path / "run")
    assert found["production"]["episodes"] == 0 and found["episodes"]["stored"] == 0
