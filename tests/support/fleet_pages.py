"""The pages of a fleet, served."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fieldlm_compiler.fleet.serve import Pages
from fieldlm_compiler.fleet.view import TellTask


@contextmanager
def served(folder: Path, tell: TellTask | None = None) -> Generator[str]:
    """Serve the store in `folder`; yields where."""
    with Pages(str(folder), 0, tell) as pages:
        thread = threading.Thread(target=pages.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield pages.url
        pages.shutdown()
        thread.join()
