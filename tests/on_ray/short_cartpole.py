"""A user's own task, in a module of the user's own: CartPole without edge cases."""

from __future__ import annotations

import dataclasses

from flywheel.tasks.cartpole import cartpole

task = dataclasses.replace(cartpole, name="short-cartpole", edge_cases=(), drift={})
