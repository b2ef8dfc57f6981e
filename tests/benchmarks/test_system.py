"""What is measured of processes."""

import tempfile
from contextlib import closing

from tests.benchmarks import hidden
from tests.kit.child import Child


def test_worker_that_shows_itself_to_root_alone() -> None:
    """Whoever is not root may measure the system, too."""
    with tempfile.TemporaryFile("w+") as out:
        with closing(Child(hidden.look, files=[None, out.fileno(), out.fileno()])) as child:
            child.wait()
        out.seek(0)
        printed = out.read()

    assert (0, "['worker', 'here', 'resident', 'proportional'] True\n") == (child.returncode, printed)
