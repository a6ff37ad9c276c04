"""infinity on its torch engine: `infinity_server.py MODEL PORT`. Asks no server and reports nothing."""

from __future__ import annotations

import os
import sys

os.environ |= {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0", "HF_HUB_OFFLINE": "1"}

import uvicorn
from infinity_emb import EngineArgs, create_server

if __name__ == "__main__":
    arguments = EngineArgs(
        model_name_or_path=sys.argv[1],
        engine="torch",
        device="cpu",
        batch_size=64,
        model_warmup=True,
        served_model_name="model",
    )
    app = create_server(engine_args_list=[arguments])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
