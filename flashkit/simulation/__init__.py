"""What a load does to an endpoint, computed: the local platform's own state machine on virtual time.

Nothing runs, nothing waits: workers and jobs are numbers, and a day is over in seconds. Every decision (who starts,
who stops, who gets a job) is taken by `flashkit.emulator.platform`, so that simulation and local platform cannot
drift apart; see docs/decisions/0015.
"""
