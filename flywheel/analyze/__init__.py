"""Analyze: what changed in production, and what to do about it.

In: Signals and production Episodes, the turns so far. Out: a Calibration of the simulator, a Plan.
Never: trains, judges or releases anything; reads a clock; guesses where the data are silent (it says so by name).
"""
