"""`python -m benchmarks NAME`: the side-by-side measurements of speed (benchmarks/README.md, "Speed")."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    from speed.cli import main

    main()
