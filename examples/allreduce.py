"""Every member of a gang adds its rank to one sum: the smallest program of torch.distributed.

    hal submit --gang 2 --memory 4GiB -- python examples/allreduce.py

Needs PyTorch. With GPUs it talks over NCCL or RCCL, without over gloo. hal sets the variables that ``env://``
reads.
"""

import torch
import torch.distributed as dist

on_gpu = torch.cuda.is_available()
device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")  # a member sees its own devices only
dist.init_process_group("nccl" if on_gpu else "gloo", init_method="env://")
total = torch.tensor([float(dist.get_rank())], device=device)
dist.all_reduce(total)
print(
    f"rank {dist.get_rank()} of {dist.get_world_size()}: the sum of all ranks is {total.item():g}", flush=True
)
dist.destroy_process_group()
