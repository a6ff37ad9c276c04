"""Which endpoints may run on machines that can be taken away (spot, interruptible): those that lose nothing by it."""

from __future__ import annotations

from typing import NamedTuple

from flashkit.spec import EndpointSpec, Kind


class Verdict(NamedTuple):
    """Whether an endpoint may, and why."""

    is_allowed: bool
    reason: str


def judge_interruption(spec: EndpointSpec) -> Verdict:
    """Return whether the endpoint may run on an interruptible machine.

    An orchestrator's finished steps are in its journal, and another worker goes on with the next one. Everything else
    starts again from its first line, and what it did happens twice.
    """
    if spec.kind is Kind.ORCHESTRATOR:
        return Verdict(
            is_allowed=True, reason="its sessions are checkpointed: another worker goes on after the last finished step"
        )
    if spec.load_balanced:
        return Verdict(
            is_allowed=False, reason="requests that are under way would break off, and nobody sends them again"
        )
    return Verdict(
        is_allowed=False, reason="a running job would start again from its first line, and what it did happens twice"
    )
