"""For each rule, small projects that break it and projects that follow it, one module a subject."""

from __future__ import annotations

from tests.checks.cases import handlers, images, models, operation, secrets, timing, volumes, workers
from tests.checks.cases.building import SECRETS, Case, Files

__all__ = ["CASES", "SECRETS", "Files"]

CASES: dict[str, Case] = {
    rule_id: case
    for module in (workers, timing, secrets, models, volumes, handlers, images, operation)
    for rule_id, case in module.CASES.items()
}
