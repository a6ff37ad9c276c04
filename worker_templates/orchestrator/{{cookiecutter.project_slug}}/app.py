"""{{ cookiecutter.project_name }}: an agent that asks its tools in parallel and waits for a person before it acts.

Finished steps are in a journal: when a worker dies, another one goes on after them. While the agent waits for a person it
has no worker at all.
"""

from dataclasses import dataclass

from flashkit import Session, cpu_endpoint, orchestrator_endpoint

STOCK = {"lamp": 3, "chair": 0, "desk": 12}
PRICES = {"lamp": 20.0, "chair": 45.0, "desk": 300.0}


@dataclass
class Offer:
    """What one item would cost, and whether there is enough of it."""

    item: str
    amount: int
    price: float
    in_stock: bool


@dataclass
class Order:
    """What came of a request."""

    offers: list[Offer]
    total: float
    status: str
    """`ordered`, `rejected`, or `out of stock`."""


@cpu_endpoint(name="prices", cpu="cpu5c-2-4", workers=(1, 8), idle_timeout=60, execution_timeout_ms=20_000, concurrency=8)
async def look_up(item: str, amount: int) -> Offer:
    """Return an offer: put your shop's API here."""
    return Offer(item, amount, PRICES.get(item, 0.0) * amount, STOCK.get(item, 0) >= amount)


# One warm worker to begin with; three where many people depend on it.
@orchestrator_endpoint(  # flashkit: ignore[FK104]
    name="{{ cookiecutter.project_slug.replace('_', '-') }}",
    cpu="cpu5c-2-4",
    workers=(1, 5),
    idle_timeout=600,
    execution_timeout_ms=60_000,
)
async def order(session: Session, items: dict[str, int], approve_above: float = 100.0) -> Order:
    """Order items; what costs much waits for a person's `approval`."""
    session.budget(steps=50)
    calls = (session.call(look_up, item=item, amount=amount, timeout=30) for item, amount in items.items())
    offers = await session.gather(*calls)
    total = sum(offer.price for offer in offers)
    if not all(offer.in_stock for offer in offers):
        return Order(offers, total, "out of stock")
    if total > approve_above:
        approval = await session.wait_for("approval", timeout=7 * 24 * 3600)
        if not approval.get("approved"):
            return Order(offers, total, "rejected")
    await session.effect("place", place_order, offers, once=True)
    return Order(offers, total, "ordered")


async def place_order(offers: list[Offer]) -> None:
    """Place the order, once: put your shop's API here."""
