"""Cases of the rules for volumes."""

from __future__ import annotations

from tests.checks.cases.building import VOLUME, Case, app, gpu, llm, volume

CASES: dict[str, Case] = {
    "FK403": Case(
        broken=(
            app(llm(volume=VOLUME), dockerfile="FROM a:1\nCOPY weights /runpod-volume/models\n"),
            app(
                llm(volume=VOLUME), dockerfile="FROM a:1\nRUN hf download org/model --local-dir /runpod-volume/models\n"
            ),
            app(llm(), dockerfile="FROM a:1\nCOPY weights /runpod-volume\n"),
        ),
        fine=(
            app(
                llm(volume=VOLUME),
                dockerfile="FROM a:1\nCOPY weights /models\nENV HF_HOME=/runpod-volume/huggingface-cache\n",
            ),
            app(llm(), dockerfile="FROM a:1\nRUN mkdir -p /models && hf download org/model --local-dir /models\n"),
        ),
    ),
    "FK404": Case(
        broken=(
            app(gpu(volume=volume("EU-RO-1"), datacenter='["EU-RO-1", "US-GA-2"]')),
            app(gpu(volume=volume(), datacenter='["EU-RO-1", "US-GA-2"]')),
        ),
        fine=(
            app(gpu(volume=volume("EU-RO-1"), datacenter='["EU-RO-1"]')),
            app(gpu(volume=volume("EU-RO-1"))),
            app(gpu(volume=volume(), datacenter='"EU-RO-1"')),
            app(gpu(datacenter='["EU-RO-1", "US-GA-2"]')),
            app(gpu(volume=f"[{volume('EU-RO-1')}, {volume('US-GA-2')}]", datacenter='["EU-RO-1", "US-GA-2"]')),
        ),
    ),
    "FK405": Case(
        broken=(
            app(gpu(volume=f"[{volume()}, {volume('EU-RO-1', 'more')}]")),
            app(gpu(volume=f"[{volume('EU-RO-1')}, {volume('EU-RO-1', 'more')}]")),
        ),
        fine=(app(gpu(volume=f"[{volume('EU-RO-1')}, {volume('US-GA-2')}]")), app(gpu(volume=volume()))),
    ),
    "FK406": Case(
        broken=(
            app(gpu("a", volume=volume("EU-RO-1")), gpu("b", volume=volume("US-GA-2"))),
            app(gpu("a", volume=volume("EU-RO-1")), gpu("b", volume=volume("EU-RO-1", size=100))),
        ),
        fine=(
            app(f"SHARED = {volume('EU-RO-1')}", gpu("a", volume="SHARED"), gpu("b", volume="SHARED")),
            app(gpu("a", volume=volume("EU-RO-1", "one")), gpu("b", volume=volume("US-GA-2", "two"))),
        ),
    ),
    "FK411": Case(
        broken=(app(llm("Qwen/Qwen-14B", volume=volume(size=20))),),
        fine=(app(llm("Qwen/Qwen-14B", volume=volume(size=40))), app(llm("org/model", volume=volume(size=10)))),
    ),
}
