"""All rules, in the order of their ids.

FK1xx workers and GPUs, FK2xx time, FK3xx secrets, FK4xx models and volumes, FK5xx handlers, FK6xx images, FK7xx
operation, FK9xx the comments that silence rules.
"""

from __future__ import annotations

from typing import Final

from flashkit.checks.rule import Rule
from flashkit.checks.rules import comments, handlers, image, models, operation, secrets, timing, volumes, workers

ALL_RULES: Final[tuple[Rule, ...]] = tuple(
    sorted(
        (
            each
            for module in (workers, timing, secrets, models, volumes, handlers, image, operation, comments)
            for each in vars(module).values()
            if isinstance(each, Rule)
        ),
        key=lambda each: each.id,
    )
)
BY_ID: Final[dict[str, Rule]] = {each.id: each for each in ALL_RULES}
