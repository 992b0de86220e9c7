"""What an exported folder says of itself."""

from __future__ import annotations

PROVENANCE = "provenance.json"
"""Where it comes from, for everybody."""
LOCAL_FILE = "local.json"
"""Where run, original model and data lie on this machine; never pushed, and not written when names are hashed."""
