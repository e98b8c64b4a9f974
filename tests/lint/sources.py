"""The Python files of the project, found without git, which a fresh machine does not have."""

from __future__ import annotations

import os
from pathlib import Path


def python_files(*folders: str) -> list[str]:
    """Return the paths of all Python files below the folders of the working directory, sorted.

    Hidden folders (virtual environments, caches) and ``node_modules`` are left out.
    """
    found = []
    for folder in folders:
        for path, inner, files in os.walk(folder):
            inner[:] = [name for name in inner if not name.startswith(".") and name != "node_modules"]
            found += [os.path.normpath(Path(path, name)) for name in files if name.endswith(".py")]
    return sorted(found)
