"""How often do the monitors alarm for nothing, and how soon when something has changed?

    python -m experiments.observer_power                  # some fifteen minutes
    python -m experiments.observer_power --quick          # a rough answer in two
    python -m experiments.observer_power --only DQ6,DQ8   # only these rows, and nothing is written

DQ6   mean time between false rollback alarms: streams with known rates, real Gymnasium episodes, 64 clients at once
DQ7   delay of the rollback alarm over that of an oracle, a CUSUM that knows both failure rates, at the same mean run
DQ8   delay of the world alarm in CartPole with gusts, and rollbacks on a change that harms little
DQ10  excess failures that a rollback avoids after a bad deployment
PEER  river's ADWIN and Page-Hinkley, as they come and calibrated to our mean run, on the same streams

Seeds are fresh each time. Prints a table, writes results/observer_power.json and exits with 1 when a row falls short.
"""

from __future__ import annotations

import argparse
import secrets
import time

from experiments import observer_clients, observer_peers, observer_streams, observer_worlds
from experiments.report import tell

MEASURES = {
    "REAL": (observer_streams.same,),
    "DQ6": (observer_streams.false_alarms, observer_clients.clients, observer_clients.real),
    "DQ7": (observer_streams.against_oracle,),
    "DQ8": (observer_worlds.delays, observer_streams.harmless),
    "DQ10": (observer_streams.avoided,),
    "PEER": (observer_peers.beside,),
}


def main() -> None:
    """Measure, print, write, and exit with 1 when a row falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer runs, and nothing is written")
    parser.add_argument("--only", default="", help=f"some of {', '.join(MEASURES)}, and nothing is written")
    given, seed, began = parser.parse_args(), secrets.randbelow(2**31), time.monotonic()
    only = [id_ for id_ in given.only.split(",") if id_]
    if strange := [id_ for id_ in only if id_ not in MEASURES]:
        parser.error(f"there is no {', '.join(strange)}: choose from {', '.join(MEASURES)}")
    rows = []
    for id_, measures in MEASURES.items():
        for row in (row for measure in measures if not only or id_ in only for row in measure(seed, given.quick)):
            print(f"{row['id']}  {row['value']}  {row['case']}", flush=True)
            rows.append(row)
    tell("observer_power", began, rows, is_kept=not given.quick and not only)


if __name__ == "__main__":
    main()
