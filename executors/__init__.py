"""The executors that come with miai_graph. Each keeps the contract of `miai_graph.executor`.

>>> from executors import Serial
"""

from pathlib import Path

from executors.serial import Serial
from miai_graph.context import hide_from_source_lines

hide_from_source_lines(str(Path(__file__).parent))

__all__ = ["Serial"]
