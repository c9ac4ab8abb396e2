"""Remote opens a run that is elsewhere for time travel, by the address of its page: `tp = flywheel.connect(url)`.

In: a page's answers. Out: the records and the Result that the run directory itself would give, to the last bit.
Never: loads the task or a policy, simulates, or writes down the token.
"""
