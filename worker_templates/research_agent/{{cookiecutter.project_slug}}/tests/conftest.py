import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_pages import make_server

PAGES = Path(__file__).parent.parent / "pages"


@pytest.fixture
def pages_url() -> Iterator[str]:
    """The sample pages, served on a free port of loopback."""
    with make_server(PAGES, quiet=True) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
