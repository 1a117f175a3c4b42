"""How one network is divided among the processes of a run: whole everywhere (DDP), or in shards (FSDP2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from training.distributed import max_over_ranks, rank, world_size
from training.engine.process import has_bf16
from training.models.blocks import Block
from training.models.convnext import ConvNeXtBlock

if TYPE_CHECKING:
    from training.engine.learner import Network
    from training.models.architectures import Architecture
    from training.recipe import Recipe


class Parallel:
    """The way of ``recipe.parallel`` on ``device``, for networks that the processes of ``group`` (default: all) share.

    ``bf16``: whether matrix products are in bfloat16. Every process makes one.
    """

    def __init__(self, recipe: Recipe, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        self.device, self.recipe, self.group = device, recipe, group
        self.world, self.rank = world_size(group), rank(group)
        self.bf16 = recipe.precision == "bf16-emulated" or (recipe.precision == "bf16" and _all_have_bf16(device))
        self.sharded = recipe.parallel == "fsdp" and self.world > 1
        self._mesh: Any = None
        if self.sharded:
            if group is None:
                self._mesh = dist.device_mesh.init_device_mesh(device.type, (self.world,))
            else:
                self._mesh = dist.device_mesh.DeviceMesh.from_group(group, device.type)

    def training(self, network: Network) -> tuple[Network, nn.Module]:
        """(the network itself, what is called in its place) with gradients averaged over the processes."""
        self._prepare(network, trains=True)
        if self.sharded:
            self._shard(network, reshard=False)
            return network, network
        if self.world == 1:
            return network, network
        # no buffers to send, and gradients live in the buckets: a bucket costs one collective and no copy
        wrapped = nn.parallel.DistributedDataParallel(
            network, process_group=self.group, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
        return network, wrapped

    def inference(self, network: Network) -> Network:
        """A network that only answers; in shards it is put together for each pass, since its weights move between."""
        self._prepare(network, trains=False)
        if self.sharded:
            self._shard(network, reshard=True)
        return network

    def _prepare(self, network: Network, trains: bool) -> None:
        recipe, backbone = self.recipe, network.backbone
        if trains:
            backbone.recompute = recipe.recompute
        if recipe.compile:
            for block in getattr(backbone, "blocks", ()):
                block.compile_branches()

    def _shard(self, network: Network, reshard: bool) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy()
        if self.bf16:
            policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
            )
        units = [module for module in network.backbone.modules() if isinstance(module, Block | ConvNeXtBlock)]
        for unit in (*units, *dict.fromkeys((network.dino_head, network.ibot_head))):
            fully_shard(unit, mesh=self._mesh, mp_policy=policy, reshard_after_forward=True)
        fully_shard(network, mesh=self._mesh, mp_policy=policy, reshard_after_forward=reshard)

    @contextlib.contextmanager
    def synchronised(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Inside it, gradients are averaged over the processes only in the ``last`` of several backward passes."""
        if self.world == 1 or (last and not self.sharded):
            yield
        elif self.sharded:
            module.set_requires_gradient_sync(last)  # type: ignore[operator]
            yield
        else:
            with module.no_sync():  # type: ignore[operator]
                yield

    def whole(self, network: Network, spec: Architecture) -> Network:
        """``network`` as an ordinary one with merged low-rank updates, to export or to measure.

        Every process calls this; the result is of use on the first only. Without shards and updates it is ``network``.
        """
        from training.engine.learner import build_network
        from training.engine.low_rank import has_low_rank, merged_state

        if not self.sharded and not has_low_rank(network.backbone):
            return network
        state = {}
        for name, tensor in network.state_dict().items():
            value = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self.rank == 0:
                state[name] = value.detach().cpu()
        recipe = self.recipe
        plain = build_network(spec, recipe.heads, recipe.seed, "meta")
        if self.rank == 0:
            plain.load_state_dict(merged_state(state, recipe), assign=True)
            plain.to(self.device)
        return plain.eval().requires_grad_(False)


def _all_have_bf16(device: torch.device) -> bool:
    lacks = max_over_ranks(torch.tensor(float(not has_bf16(device)), device=device))
    return not lacks
