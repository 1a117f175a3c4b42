"""One process's share of every loss and of its gradient: a program that test_processes.py starts several times.

python share_of_losses.py RANK PROCESSES RENDEZVOUS_FILE OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from training.distributed import gather_rows, mean_over_ranks, sum_over_ranks
from training.models.build import build_backbone, build_head
from training.models.draws import StepDraws
from training.objectives.dino import dino_loss, pair_shares
from training.objectives.gram import gram_loss
from training.objectives.ibot import ibot_loss, mask_weights
from training.objectives.koleo import koleo_loss
from training.objectives.targets import SoftmaxCentering, sinkhorn_knopp

IMAGES, LOCALS = 8, 3
SPEC = {
    **{"arch": "vit", "dim": 32, "depth": 2, "heads": 2, "patch_size": 8, "registers": 1, "layer_scale": 0.5},
    **{"drop_path": 0.4, "rope_rescale": 2.0, "rope_jitter_scope": "block", "local_cls_norm": True},
}


def compute(rank: int, processes: int) -> dict[str, torch.Tensor]:
    """Values and gradients averaged over processes, and what every process sees of the targets."""
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(2, IMAGES, 3, 32, 32, generator=generator)
    small = torch.randn(LOCALS, IMAGES, 3, 16, 16, generator=generator)
    masks = torch.rand(2, IMAGES, 16, generator=generator) < 0.4
    masks[:, : IMAGES // 2] &= masks[:, : IMAGES // 2].roll(1, 0)  # processes have different numbers of masked patches
    share = IMAGES // processes
    images = range(rank * share, (rank + 1) * share)
    own = slice(images.start, images.stop)
    large, small, masks = large[:, own].flatten(0, 1), small[:, own].flatten(0, 1), masks[:, own].flatten(0, 1)

    student, teacher = build_backbone(SPEC, seed=1).train(), build_backbone(SPEC, seed=2).eval()
    dino_head, ibot_head = build_head(32, 48, 16, 40, seed=3), build_head(32, 48, 16, 24, seed=4)
    centring = SoftmaxCentering(40)
    with torch.no_grad():
        seen = teacher(large)
        cls_scores = 10 * dino_head(seen["cls"])
        cls = sinkhorn_knopp(cls_scores, 0.07).unflatten(0, (2, -1))
        patches = sinkhorn_knopp(10 * ibot_head(seen["patches"][masks]), 0.07)
        centring.update(cls_scores)
    draws = StepDraws.for_images(0, 5, images, IMAGES, (2, LOCALS))
    features = student.forward_crops([large, small], [masks, None], draws=draws)
    scores = dino_head(torch.cat([feature["cls"] for feature in features]))
    local, global_ = pair_shares(2, LOCALS)
    values = {
        "dino_local": local * dino_loss(scores[2 * share :], cls),
        "dino_global": global_ * dino_loss(scores[: 2 * share], cls, ignore_diagonal=True),
        "ibot": ibot_loss(ibot_head(features[0]["patches"][masks]), patches, mask_weights(masks), 2 * share),
        "gram": gram_loss(features[0]["patches"], seen["patches"]),
    }
    for size in (2, 4, 8):  # within one process of two, within or across, always across
        values[f"koleo_{size}"] = sum(koleo_loss(crop, size) for crop in features[0]["cls"].chunk(2))
    result = {}
    modules = {"backbone": student, "dino": dino_head, "ibot": ibot_head}
    for name, value in values.items():
        gradients = torch.autograd.grad(
            value, [p for module in modules.values() for p in module.parameters()], retain_graph=True, allow_unused=True
        )
        flat = torch.cat([g.flatten() for g in gradients if g is not None])
        result[f"gradient {name}"] = mean_over_ranks(flat)
        result[f"value {name}"] = mean_over_ranks(value.detach().clone())
    result["targets"] = gather_rows(cls.transpose(0, 1))
    result["center"] = centring.center
    result["masked patches"] = sum_over_ranks(torch.tensor(float(len(patches))))
    return result


def main(rank: int, processes: int, rendezvous: str, output: str) -> None:
    """Compute a share and write it."""
    torch.set_num_threads(1)
    if processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=processes)
    torch.save(compute(rank, processes), Path(output))
    if processes > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
