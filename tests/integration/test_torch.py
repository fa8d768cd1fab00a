"""PyTorch's own programs as jobs; only where PyTorch is installed, which hal itself does not need."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.integration.test_jobs import Site, member, site

__all__ = ["site"]

pytest.importorskip("torch")
EXAMPLE = Path(__file__).parents[2] / "examples" / "allreduce.py"
TORCHRUN = (
    f"{sys.executable} -m torch.distributed.run --nnodes $NNODES --node-rank $NODE_RANK --nproc-per-node 1 "
    f"--master-addr $MASTER_ADDR --master-port $MASTER_PORT {EXAMPLE}"
)


@pytest.mark.parametrize("script", [f"{sys.executable} {EXAMPLE}", TORCHRUN], ids=["python", "torchrun"])
def test_a_gang_of_torch_meets_across_nodes(site: Site, script: str) -> None:
    site.add("green", "l40s-4")
    site.add("red", "mi210-4")
    id = site.submit(script, request={"members": [member("nvidia"), member("amd", replicas=2)]})
    job = site.over(id)
    assert job["state"] == "completed", site.said(id, stream="stderr")
    assert [site.said(id, rank) for rank in range(3)] == [
        f"rank {rank} of 3: the sum of all ranks is 3\n" for rank in range(3)
    ]
