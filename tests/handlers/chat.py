"""A small OpenAI-compatible worker, shaped like Runpod's worker for vLLM."""

import asyncio
import json

import runpod


def part(text):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\n"


def completion(text):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "tiny", "choices": [choice]}


async def handler(job):
    route, body = job["input"]["openai_route"], job["input"].get("openai_input", {})
    if route == "/v1/models":
        yield {"object": "list", "data": [{"id": "tiny", "object": "model", "created": 1, "owned_by": "us"}]}
        return
    if body["model"] != "tiny":
        yield {"error": json.dumps({"code": "input_invalid", "message": f"no model {body['model']!r}"})}
        return
    question = body["messages"][-1]["content"]
    if question == "break":
        raise RuntimeError("the engine broke")
    if not body.get("stream"):
        yield completion("hello world")
        return
    for word in ("hel", "lo ", "wor", "ld"):
        yield part(word)
        if question == "break later":
            raise RuntimeError("the engine broke")
        await asyncio.sleep(body.get("seed") or 0)
    if body.get("stream_options", {}).get("include_usage"):
        yield f"data: {json.dumps({'choices': [], 'usage': {'prompt_tokens': 3, 'completion_tokens': 4}})}\n\n"
    yield "data: [DONE]\n\n"


runpod.serverless.start(
    {"handler": handler, "return_aggregate_stream": True, "concurrency_modifier": lambda current: 8}
)
