"""The suite that every backend has to pass: public, for whoever writes one.

In a test of your own::

    from hal.conformance import run

    def test_conforms() -> None:
        results = run(lambda: Backend(root=str(fabricated)))
        assert not [result for result in results if result.failed], results

``unsupported`` names checks that this hardware can never pass, each with its reason; ``expected_failures``
those that are to be mended. One of the latter that passes is a failure: the list has to shrink.
"""

from hal.conformance.suite import CHECKS, Outcome, Result, run

__all__ = ["CHECKS", "Outcome", "Result", "run"]
