"""What a session has used: by model, by endpoint, and as its code says; once, however often it is resumed."""

from __future__ import annotations

import orjson
import pytest

from flashkit.catalog import GpuType
from flashkit.spec import EndpointSpec, Kind, WorkerBounds
from flashkit.worker.sessions.accounts import MOST_NAMES, Account, Tariff, account_of
from flashkit.worker.sessions.admin import describe

ANSWER = {"model": "tiny", "usage": {"prompt_tokens": 30, "completion_tokens": 12}}


def gpu_spec(name="llm", count=1, gpu=GpuType.NVIDIA_A100_80GB_PCIe):
    return EndpointSpec(name=name, kind=Kind.GPU, gpu=(gpu,), gpu_count=count, workers=WorkerBounds(0, 1))


def cpu_spec(name="tool"):
    return EndpointSpec(name=name, kind=Kind.CPU, cpu="cpu3c-1-2", workers=WorkerBounds(0, 1))


def test_a_call_of_a_model_costs_its_seconds_at_the_gpus_price():
    used = Tariff.of(gpu_spec(count=2)).describe(ANSWER, 1_500)
    assert used == {
        "endpoint": "llm",
        "seconds": 1.5,
        "gpu": "2x NVIDIA A100 80GB PCIe",
        "usd": pytest.approx(1.5 * 2 * 0.00076),
        "model": "tiny",
        "input_tokens": 30,
        "output_tokens": 12,
    }


def test_a_call_without_tokens_or_price_says_what_is_known():
    assert Tariff.of(cpu_spec()).describe({"found": 3}, 200) == {"endpoint": "tool", "seconds": 0.2}
    unpriced = Tariff.of(gpu_spec(gpu=GpuType.NVIDIA_RTX_5090)).describe(None, 200)
    assert unpriced == {"endpoint": "llm", "seconds": 0.2, "gpu": "NVIDIA GeForce RTX 5090"}
    nameless = Tariff.of(cpu_spec("writer")).describe([{"usage": {"input_tokens": 3, "output_tokens": 4}}], 0)
    assert nameless["model"] == "writer"


def test_calls_add_up_by_model_and_by_endpoint():
    tariff = Tariff.of(gpu_spec())
    account = account_of(
        [
            {"used": tariff.describe(ANSWER, 1_000)},
            {"used": tariff.describe({**ANSWER, "model": "large"}, 2_000)},
            {"used": Tariff.of(cpu_spec()).describe(None, 500), "spent": {"tokens": 7, "cost_usd": 0.5}},
            {"path": "", "n": 3},
        ]
    )
    assert {name: each.input_tokens for name, each in account.models.items()} == {"tiny": 30, "large": 30}
    assert account.endpoints["llm"].calls == 2
    assert account.gpu_seconds == 3.0
    assert account.usd == pytest.approx(3 * 0.00076)
    assert (account.spent_tokens, account.spent_usd) == (7, 0.5)


def test_an_account_survives_being_written_down_and_added_to_another():
    account = account_of([{"used": Tariff.of(gpu_spec()).describe(ANSWER, 1_000), "spent": {"tokens": 7}}])
    kept = Account.from_json(orjson.loads(orjson.dumps(account.to_json())))
    assert kept == account
    kept.add(account)
    assert kept.models["tiny"].output_tokens == 24
    assert kept.endpoints["llm"].gpu == "NVIDIA A100 80GB PCIe"
    assert kept.spent_tokens == 14
    assert Account.from_json(None).is_empty
    assert not kept.is_empty


def test_models_with_names_without_end_are_added_up_together():
    account = Account()
    for number in range(MOST_NAMES + 10):
        account.add_call({"endpoint": f"e{number}", "model": f"m{number}", "input_tokens": 1})
    assert len(account.models) == len(account.endpoints) == MOST_NAMES + 1
    assert account.models["other"].input_tokens == 10


@pytest.mark.parametrize("lab", ["sqlite"], indirect=True)
async def test_what_was_spent_is_kept_over_turns_and_counted_once(lab):
    crash = [False, True]

    async def agent(session, tokens: int) -> int:
        def spend():
            session.spend(tokens=tokens, cost_usd=0.5)

        await session.step("ask", spend)
        if crash and crash.pop():
            raise ConnectionError
        return tokens

    worker = await lab.worker(agent)
    assert (await worker.error("j1", session_id="s", tokens=10)).type == "ConnectionError"
    async with lab.store() as store:
        assert (await describe(store, "s")).used.spent_tokens == 10
    await worker.answer("j1", session_id="s", tokens=10)
    await worker.answer("j2", session_id="s", tokens=5)
    async with lab.store() as store:
        used = (await describe(store, "s")).used
    assert (used.spent_tokens, used.spent_usd) == (15, 1.0)
