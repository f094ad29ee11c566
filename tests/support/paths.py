"""Where the shared reference material stands, and a mark for tests that need it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
GOLDEN = SHARED / "golden"
HUB = SHARED / "data" / "hub"
TOKENIZERS = SHARED / "tokenizers"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")
