"""The agent on the local platform: real workers, a real store of sessions."""

import pytest

from app import STOCK, look_up, order

NAME = order.spec.name


async def test_the_tool_is_a_function():
    offer = await look_up("desk", 2)
    assert (offer.price, offer.in_stock) == (600.0, True)


def test_a_small_order_needs_nobody(endpoint):
    result = endpoint(NAME).call({"items": {"lamp": 2}})
    assert (result["status"], result["total"]) == ("ordered", 40.0)


def test_what_is_not_in_stock_is_not_ordered(endpoint):
    assert endpoint(NAME).call({"items": {"chair": STOCK["chair"] + 1}})["status"] == "out of stock"


@pytest.mark.parametrize(("approved", "status"), [(True, "ordered"), (False, "rejected")])
def test_a_large_order_waits_for_a_person(endpoint, approved: bool, status: str):
    waiting = endpoint(NAME).call({"items": {"desk": 1}})
    assert (waiting["status"], waiting["event"]) == ("waiting", "approval")

    event = {"name": "approval", "value": {"approved": approved}}
    assert endpoint(NAME).call({"session_id": waiting["session_id"], "event": event})["status"] == status


def test_an_order_survives_the_death_of_its_worker(endpoint, faults):
    faults.set(f"{NAME}:kill=0.4", seed=3)
    results = [endpoint(NAME).call({"items": {"lamp": 1}})["status"] for _ in range(3)]
    assert results == ["ordered"] * 3
