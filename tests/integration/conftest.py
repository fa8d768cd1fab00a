"""Ends what a failed test leaves running."""

from tests.integration.support import no_survivors  # noqa: F401
