"""{{ cookiecutter.project_name }}: a research agent of four endpoints.

    question ─► agent ─► llm            split into three sub-queries
                      ─► web-retrieval  three pages in parallel, 30 seconds each
                      ─► kb-search      closest passages of the pages and the knowledge base
                      ─► llm            one summary of each passage, in parallel
                      ─► kb-search      find the source of every sentence, drop what has none
                      ─► llm            critique
             report ◄─ cited answer

Run it with `flashkit dev app.py`. The steps between the calls are plain functions in `steps/`.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote_plus

from flashkit import (
    LLM,
    VLLM,
    GpuType,
    Session,
    Weights,
    cpu_endpoint,
    embedding_endpoint,
    gpu_endpoint,
    orchestrator_endpoint,
)

from steps import citing, planning
from steps.documents import Document, load_folder, split_passages
from steps.ranking import Embed, Index, build_index, nearest
from steps.schema import Critique, Generation, Hit, Message, Page, Passage, Report
from steps.web import fetch_page

HERE = Path(__file__).parent
KNOWLEDGE_DIR = Path(os.environ.get("KNOWLEDGE_DIR") or HERE / "knowledge")
SEARCH_URL = os.environ.get("SEARCH_URL") or "http://127.0.0.1:8808/search?q={query}"
"""Address that answers a query with a page or a redirect to one; `serve_pages.py` by default."""
EMBEDDING_MODEL = Weights("sentence-transformers/all-MiniLM-L6-v2", "c9745ed1d9f207416be6d2e6f8de32d1f16199bf")
LANGUAGE_MODEL = Weights("HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac")
PASSAGES_READ = 4
CALL_SECONDS = 30.0
MODEL_SECONDS = 120.0
"""A model's worker may have to start first."""


def passed_on(*names: str) -> dict[str, str]:
    """Return the variables that are set where the app is described: a worker sees only what its endpoint declares."""
    return {name: os.environ[name] for name in names if os.environ.get(name)}


@cpu_endpoint(
    name="web-retrieval",
    cpu="cpu5c-4-8",
    workers=(0, 3),
    idle_timeout=300,
    execution_timeout_ms=30_000,
    concurrency=8,
)
async def retrieve(url: str) -> Page:
    """Return a web page as text."""
    return await fetch_page(url)


class _Knowledge:
    """The knowledge base of this worker, read and embedded by the first job."""

    index: Index | None = None
    # Keeps two first jobs from embedding the whole folder twice.
    lock = asyncio.Lock()

    @classmethod
    async def load(cls, embed: Embed) -> Index:
        async with cls.lock:
            if cls.index is None:
                passages = await asyncio.to_thread(load_folder, KNOWLEDGE_DIR)
                cls.index = await build_index(passages, embed)
            return cls.index


@embedding_endpoint(
    name="kb-search",
    gpu="RTX 4090",
    workers=(1, 2),
    idle_timeout=300,
    execution_timeout_ms=120_000,
    env=passed_on("KNOWLEDGE_DIR"),
    weights=EMBEDDING_MODEL,
)
async def search(
    queries: list[str],
    top_k: int = 4,
    passages: list[Passage] | None = None,
    knowledge: bool = True,
    *,
    embed: Embed,
) -> list[list[Hit]]:
    """Return the closest passages for each query, from the knowledge base and from the passages sent along."""
    indexes = [await _Knowledge.load(embed)] if knowledge else []
    if passages:
        indexes.append(await build_index(passages, embed))
    if not queries:
        return []
    return [nearest(vector, indexes, top_k) for vector in await embed(queries)]


@gpu_endpoint(
    name="llm",
    gpu=GpuType.{{ cookiecutter.gpu }},
    workers=(1, 2),
    idle_timeout=300,
    execution_timeout_ms=120_000,
    scaler_value=20,  # seconds in the queue; a second worker takes longer than that to load
    engine=VLLM(
        LANGUAGE_MODEL,
        max_model_len=2048,
        warmup=["chat"],  # what it is used for; the other routes are compiled when somebody asks for them
        base_url=os.environ.get("FLASHKIT_LLM_URL"),  # a server that stands in for it, where vLLM cannot run
    ),
)
async def write(messages: list[Message], max_new_tokens: int = 96, *, engine: LLM) -> Generation:
    """Return the model's next message in a chat, the same one every time."""
    started = time.perf_counter()
    answer = await engine.chat(
        [message.model_dump() for message in messages], max_tokens=max_new_tokens, temperature=0.0
    )
    return Generation(
        text=answer.text.strip(),
        prompt_tokens=answer.usage.prompt_tokens,
        new_tokens=answer.usage.completion_tokens,
        seconds=round(time.perf_counter() - started, 3),
    )


# One warm worker to begin with; three where many people depend on it.
@orchestrator_endpoint(  # flashkit: ignore[FK104]
    name="agent",
    cpu="cpu5c-2-4",
    workers=(1, 2),
    idle_timeout=1800,
    execution_timeout_ms=300_000,
    env=passed_on("SEARCH_URL"),
)
async def research(session: Session, question: str, urls: list[str] | None = None) -> Report:
    """Return a cited answer to a question, from web pages and the knowledge base."""
    sub_queries = await _decompose(session, question)
    pages, failed_pages = await _retrieve_all(
        session, [_search_url(query) for query in sub_queries] if urls is None else urls
    )
    passages = await _find_passages(session, [question, *sub_queries], pages)
    written = await _synthesise(session, question, passages)
    cited = citing.renumber(written.kept, citing.number_sources(passages))
    answer = citing.cited_text(cited.claims) or "The sources say nothing about this question."
    critique = await _criticise(session, question, sub_queries, answer, written)
    return Report(
        question=question,
        answer=answer,
        written_by=citing.author(cited.claims),
        sources=cited.sources,
        claims=cited.claims,
        critique=critique,
        sub_queries=sub_queries,
        failed_pages=failed_pages,
    )


async def _decompose(session: Session, question: str) -> list[str]:
    prompt = planning.decomposition_prompt(question)
    drafts = await session.gather(
        session.call(write, prompt, max_new_tokens=64, timeout=MODEL_SECONDS), partial=True
    )
    draft = drafts[0].text if isinstance(drafts[0], Generation) else ""
    return await session.step("decompose", planning.choose_sub_queries, question, draft)


async def _retrieve_all(session: Session, urls: Sequence[str]) -> tuple[list[Page], list[str]]:
    """Fetch pages in parallel; a page that fails or hangs fails alone."""
    calls = (session.call(retrieve, url=url, timeout=CALL_SECONDS) for url in urls)
    results = await session.gather(*calls, partial=True)
    pages = {page.url: page for page in results if isinstance(page, Page)}
    failed = [str(result) for result in results if isinstance(result, BaseException)]
    return list(pages.values()), failed


async def _find_passages(session: Session, queries: list[str], pages: Sequence[Page]) -> list[Hit]:
    fresh = [
        passage
        for page in pages
        for passage in split_passages(Document(title=page.title, text=page.text), source=page.url)
    ]
    found = await session.call(search, queries, top_k=PASSAGES_READ, passages=fresh, timeout=MODEL_SECONDS)
    return planning.choose_passages(found, PASSAGES_READ)


async def _synthesise(session: Session, question: str, passages: Sequence[Hit]) -> citing.Written:
    evidence = citing.evidence_of(passages)
    if not evidence:
        return citing.Written(kept=[], dropped=[])
    summaries: list[Generation] = await session.gather(
        *(
            session.call(write, citing.summary_prompt(passage), max_new_tokens=72, timeout=MODEL_SECONDS)
            for passage in passages
        )
    )
    sentences = list(dict.fromkeys(line for summary in summaries for line in citing.whole_sentences(summary.text)))
    both = evidence + citing.drafts_of(sentences)
    [ranked] = await session.call(
        search, [question], top_k=len(both), passages=both, knowledge=False, timeout=MODEL_SECONDS
    )
    matches = await session.call(search, sentences, top_k=1, passages=evidence, knowledge=False, timeout=MODEL_SECONDS)
    sources = citing.number_sources(passages)
    claims = [
        citing.judge(sentence, hits[0], passages, sources) for sentence, hits in zip(sentences, matches, strict=True)
    ]
    return citing.select(claims, ranked, sources)


async def _criticise(
    session: Session, question: str, sub_queries: list[str], answer: str, written: citing.Written
) -> Critique:
    said = [Passage(source="answer", title="", text=claim.text) for claim in written.kept]
    prompt = citing.critique_prompt(question, " ".join(claim.text for claim in written.kept) or answer)
    opinion = await session.call(write, prompt, max_new_tokens=48, timeout=MODEL_SECONDS)
    coverage = await session.call(search, sub_queries, top_k=1, passages=said, knowledge=False, timeout=MODEL_SECONDS)
    return Critique(
        opinion=citing.usable_opinion(question, opinion.text),
        unsupported=written.dropped,
        unanswered=[
            query
            for query, hits in zip(sub_queries, coverage, strict=True)
            if not hits or hits[0].score < citing.MIN_COVERAGE
        ],
    )


def _search_url(query: str) -> str:
    return SEARCH_URL.replace("{query}", quote_plus(query))
