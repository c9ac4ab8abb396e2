"""Episodes that clients act in by themselves are read in order of start, as those that are stepped are."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flywheel.config import DeployConfig, ObserveConfig
from flywheel.deploy.canary import Ramp
from flywheel.observe.observer import Observer
from flywheel.outcomes import Outcome, outcome_of
from flywheel.records import Episode
from flywheel.task import spec_of
from flywheel.tasks.cartpole import cartpole
from tests.observe.streams import DIGEST, rows_of
from tests.observe.test_observer import feed, make, release

CONFIG = ObserveConfig()
OTHER = "e" * 64


def episode(id_: str, start: float, end: float, *, failed: bool = False, digest: str = DIGEST) -> Episode:
    """Return a whole episode of two steps."""
    spec = spec_of(cartpole)
    return Episode(
        id=id_, origin="production", task="t", parameters={}, draw_key=7, digests=(digest,) * 2,
        observations=np.zeros((3, 4), spec.observation_dtype), raw_actions=np.zeros(2, spec.action_dtype),
        rewards=np.ones(2), logps=np.zeros(2), end="terminated" if failed else "truncated", failed=failed,
        started_at=start, ended_at=end,
    )  # fmt: skip


@dataclass
class Clients:
    """What an observer hears of episodes as time goes on, and what the store has of them."""

    observer: Observer
    stored: list[Outcome] = field(default_factory=list)
    running: dict[str, Episode] = field(default_factory=dict)

    def tell(self, now: float) -> None:
        self.observer.begun({e.id: e.started_at for e in self.running.values()}, now)

    def upload(self, whole: Episode, now: float) -> None:
        self.tell(now)
        del self.running[whole.id]
        (placed,) = self.observer.placed([whole])
        self.observer.uploaded([placed], {whole.id: "stored"}, now)
        self.stored.append(outcome_of(placed))

    def outcomes(self, after: tuple[float, str], now: float) -> list[Outcome]:
        until = self.observer.settled_until(now)
        found = [o for o in self.stored if after < (o.started_at, o.id) < until and not self.observer.is_unread(o.id)]
        return sorted(found)


# The law


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_stepped_or_uploaded_the_same_episodes_are_heard_in_the_same_order(data: st.DataObject) -> None:
    first = [(0.0, 0.0, 0.0, False)]  # there are such clients
    drawn = st.tuples(st.floats(0, 20), st.floats(0.1, 25), st.floats(0.0, 2.5), st.booleans())
    told = [
        (episode(f"e{i}", start, start + length), start + min(late, length), is_stepped)
        for i, (start, length, late, is_stepped) in enumerate(first + data.draw(st.lists(drawn, max_size=12)))
    ]
    clients, now, heard = Clients(make()), 0.0, list[str]()
    events = [
        event
        for i, (e, heard_at, _) in enumerate(told)
        for event in ((e.started_at, 0, i), (heard_at, 1, i), (e.ended_at, 2, i))
    ]
    events += [(float(second), 3, 0) for second in range(60)]
    for now, kind, i in sorted(events):
        e, _, is_stepped = told[i]
        rows = rows_of(e.id, 2, start=e.started_at)
        if kind == 3:
            clients.tell(now)
        elif is_stepped and kind != 1:
            feed(clients.observer, rows[:1] if kind == 0 else rows, now)
        elif not is_stepped and kind == 1:
            clients.running[e.id] = e
            clients.tell(now)
        elif not is_stepped and kind == 2:
            clients.upload(e, now)
        clients.observer.tick(now)
        heard = [o.id for o in clients.observer.heard(99)[1]]
        assert heard == [e.id for e in sorted((t[0] for t in told), key=lambda e: (e.started_at, e.id))][: len(heard)]
    assert len(heard) == len(told) and clients.observer.status()["counts"]["late"] == 0


def test_a_running_episode_holds_its_place_until_it_is_over() -> None:
    clients = Clients(make())
    long, short = episode("long", 1.0, 9.0), episode("short", 2.0, 3.0, failed=True)
    clients.running = {"long": long, "short": short}
    clients.upload(short, 3.0)
    clients.observer.tick(8.0)
    assert clients.observer.heard(9)[0] == 0 and clients.observer.settled_until(8.0) == (1.0, "long")
    assert clients.observer.status()["leased"] == 1
    clients.upload(long, 9.0)
    clients.observer.tick(9.0)
    assert [o.id for o in clients.observer.heard(9)[1]] == ["long", "short"]
    assert clients.observer.status()["leased"] == 0


def test_outcomes_wait_for_word_from_when_there_are_such_clients() -> None:
    clients = Clients(make())
    feed(clients.observer, rows_of("stepped", 2, start=10.0), now=10.3)
    clients.observer.tick(10.3)
    assert clients.observer.heard(9)[0] == 1
    clients.running["other"] = episode("other", 10.1, 11.0)
    clients.upload(clients.running["other"], 11.0)
    feed(clients.observer, rows_of("later", 2, start=11.0), now=11.1)
    clients.observer.tick(13.9)
    assert clients.observer.heard(9)[0] == 2 and clients.observer.settled_until(13.9) == (10.9, "")
    clients.observer.tick(14.0)
    assert clients.observer.heard(9)[0] == 3


def test_a_silent_one_frees_its_place_and_is_kept_and_counted_and_read_by_nobody() -> None:
    clients = Clients(make())
    silent, later = episode("silent", 1.0, 50.0), episode("later", 2.0, 3.0)
    clients.running = {"silent": silent, "later": later}
    clients.upload(later, 3.0)
    clients.observer.tick(33.0)
    assert clients.observer.heard(9)[0] == 0
    clients.observer.tick(33.1)
    assert [o.id for o in clients.observer.heard(9)[1]] == ["later"]
    clients.upload(silent, 50.0)
    clients.observer.tick(60.0)
    assert clients.observer.heard(9)[0] == 1
    counts = clients.observer.status()["counts"]
    assert (counts["silent"], counts["late"], counts["uploaded"], clients.observer.episodes(DIGEST)) == (1, 1, 2, 2)
    assert [o.id for o in clients.outcomes((0.0, ""), 60.0)] == ["later"], "no canary reads it either"


def test_what_is_told_of_only_when_it_is_over_is_read_by_nobody() -> None:
    observer = make()
    observer.uploaded([episode("untold", 1.0, 2.0)], {"untold": "stored"}, now=2.0)
    observer.tick(9.0)
    assert observer.heard(9)[0] == 0 and observer.status()["counts"]["late"] == 1 and observer.is_unread("untold")


def test_word_that_comes_again_after_the_end_holds_nothing() -> None:
    clients = Clients(make())
    clients.running["a"] = whole = episode("a", 1.0, 2.0)
    clients.upload(whole, 2.0)
    clients.running["a"] = whole
    clients.tell(2.5)
    assert clients.observer.status()["leased"] == 0
    assert clients.observer.uploaded([whole], {"a": "same"}, now=2.6) == []


def test_it_begins_where_there_was_first_word_of_it() -> None:
    observer = make()
    observer.begun({"a": 5.0}, now=5.0)
    observer.begun({"a": 1.0}, now=7.0)  # the share changed meanwhile
    (placed,) = observer.placed([episode("a", 1.0, 2.0)])
    assert (placed.started_at, placed.ended_at) == (5.0, 5.0)
    assert observer.placed([episode("b", 1.0, 2.0)])[0].started_at == 1.0


# After a restart


def test_after_a_restart_it_waits_for_word_and_reads_on_in_order() -> None:
    before = Clients(make())
    long, short = episode("long", 1.0, 30.0), episode("short", 2.0, 3.0)
    read = episode("read", 0.5, 0.9)
    before.running = {e.id: e for e in (read, long, short)}
    for e in (read, short):
        before.upload(e, 3.0)
    before.observer.tick(9.0)
    assert [o.id for o in before.observer.heard(9)[1]] == ["read"]

    after = Clients(make(), running={"long": long})
    observer = after.observer
    observer.resume(before.observer.status()["digests"], (), now=10.0, leased=True)
    new = episode("new", 10.1, 10.2)
    after.running["new"] = new
    after.upload(new, 10.2)
    observer.tick(12.9)
    assert not observer.hears(12.9) and observer.settled_until(12.9) == (0.0, "") and observer.heard(9)[0] == 0
    assert observer.hears(13.0)
    observer.replay([read, short, new], 13.0)
    observer.caught_up()
    assert [o.id for o in observer.heard(9)[1]] == ["read"]
    assert observer.settled_until(13.0) == (1.0, "long")
    after.upload(long, 30.0)
    observer.tick(30.0)
    assert [o.id for o in observer.heard(9)[1]] == ["read", "long", "short", "new"]
    assert observer.status()["digests"][DIGEST]["episodes"] == 4, "each is counted once"


def test_after_a_restart_rewards_are_waited_for_as_long_as_before() -> None:
    observer = Observer(cartpole, ObserveConfig(reward_window_s=10.0))
    observer.release(release(), 0.05)
    lacking, known = episode("lacking", 1.0, 2.0), episode("known", 3.0, 4.0)
    lacking = dataclasses.replace(lacking, rewards=np.array([1.0, np.nan]))
    others = dataclasses.replace(lacking, id="others", digests=(OTHER,) * 2, started_at=2.5, ended_at=3.0)
    observer.resume({}, (), now=5.0)
    observer.lacking([lacking, known, others], 5.0)
    observer.replay([lacking, known], 5.0)
    observer.caught_up()
    observer.tick(5.0)
    assert observer.heard(9)[0] == 0 and observer.settled_until(5.0) == (1.0, "lacking")
    observer.rewarded(dataclasses.replace(lacking, rewards=np.ones(2)), outcome_of(lacking))
    observer.tick(6.0)
    assert observer.heard(9)[0] == 1 and observer.settled_until(6.0) == (2.5, "others")
    observer.tick(13.0)
    assert [o.id for o in observer.heard(9)[1]] == ["lacking", "known"]


# What unread places did: short episodes, which failed, came first


def busy(seed: int, rate: float, until: float) -> Iterator[tuple[float, bool, Episode]]:
    """Yield (time, whether it begins, episode) of 64 clients: episodes last 10 s, or fail after 0.2 to 4 s."""
    rng = np.random.default_rng(seed)
    queue: list[tuple[float, int, Episode | None]] = [(float(rng.uniform(0, 10)), i, None) for i in range(64)]
    num = 64
    heapq.heapify(queue)
    while queue and queue[0][0] < until:
        now, _, over = heapq.heappop(queue)
        if over is not None:
            yield now, False, over
        failed, digest = bool(rng.random() < rate), OTHER if rng.random() < 0.5 else DIGEST
        end = now + (float(rng.uniform(0.2, 4.0)) if failed else 10.0)
        begun = episode(f"e{num:06d}", now, end, failed=failed, digest=digest)
        num += 1
        yield now, True, begun
        heapq.heappush(queue, (end, num, begun))


@pytest.mark.parametrize("seed", range(3))
def test_equal_policies_are_not_rolled_back_and_every_outcome_is_read_in_order(seed: int) -> None:
    ramp, clients = Ramp(DeployConfig()), Clients(Observer(cartpole, CONFIG))
    canary, read, after, second = ramp.begin(OTHER, DIGEST, 0.0, urgent=True), list[str](), (0.0, ""), 1.0
    for now, begins, e in busy(seed, 0.03, 150.0):
        while second <= now:
            clients.tell(second)
            clients.observer.tick(second)
            heard = clients.outcomes(after, second)
            canary, second = ramp.hear(canary, heard, second), second + 1.0
            read += [o.id for o in heard]
            after = max([after, *((o.started_at, o.id) for o in heard)])
        if begins:
            clients.running[e.id] = e
            clients.tell(now)
        else:
            clients.upload(e, now)
    assert canary.state not in ("rolled_back", "frozen", "stopped"), canary.reason
    assert read == sorted(read) and len(read) == len(set(read)), "ids are in order of start"
    assert read == [o.id for o in sorted(clients.stored)][: len(read)], "none is left out"
    assert len(read) >= 0.9 * len(clients.stored), "but those that wait for others"
    assert clients.observer.status()["counts"]["late"] == 0


def test_the_outcome_monitor_raises_no_false_alarm() -> None:
    for seed in range(2):
        clients = Clients(Observer(cartpole, CONFIG))
        clients.observer.release(dataclasses.replace(release()), 0.05)
        for now, begins, e in busy(seed, 0.05, 60.0):
            e = dataclasses.replace(e, digests=(DIGEST,) * 2)
            if begins:
                clients.running[e.id] = e
                clients.tell(now)
            else:
                clients.upload(e, now)
            clients.observer.tick(now)
        assert not [s for s in clients.observer.signals if s.monitor == "failed"]
        assert clients.observer.heard(1)[0] > 200
