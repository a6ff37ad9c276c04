"""The app with a scripted model in the place of vLLM: `flashkit dev scripted.py`, and what the tests run."""

from flashkit import ScriptedLLM
from flashkit.testing import with_engine

import app

MODEL = ScriptedLLM(
    {
        "Who wrote this text": {"json": {"name": "Ada", "email": "ada@example.org"}},
        "weather": {"tool_calls": [{"name": "get_weather", "arguments": {"city": "Paris"}}]},
        ".*": "A queue holds jobs until a worker is free.",
    },
    model=app.MODEL.name,
)
llm = with_engine(app.llm, MODEL)
extract = with_engine(app.extract, MODEL)
