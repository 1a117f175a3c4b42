"""The training loop of every stage: pretraining, Gram anchoring, distillation."""

from __future__ import annotations

import io
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from foundry.errors import UserError
from foundry.progress import Progress
from foundry.storage import is_local, local_path, write_atomically
from training.data.loader import step_batches
from training.data.sampler import share
from training.data.shards import ShardDataset
from training.distributed import barrier, mean_over_ranks, rank, world_size
from training.engine.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint, step_of
from training.engine.exports import export_learner
from training.engine.guards import Watch, collapse_measures
from training.engine.journal import Journal
from training.engine.learner import Learner
from training.engine.nearest_neighbours import PeriodicKnn
from training.engine.process import choose_device, own_run_folder
from training.engine.teaching import Teacher, load_trained, trained_architecture
from training.engine.views import Views
from training.models.architectures import Architecture, architecture
from training.models.draws import StepDraws
from training.recipe import Recipe, dump_recipe, scaled_learning_rate


class Trainer:
    """One run of ``recipe`` over the curated dataset ``data`` into the run folder ``output``.

    ``teacher``: run folder to continue (gram) or distil from. ``evaluation``: labelled set for the periodic k-NN.
    Every draw is a function of (seed, step, place in the whole batch), so neither the number of processes nor of loader
    workers nor a restart changes what is learned.
    """

    def __init__(
        self, recipe: Recipe, data: str, output: str, teacher: str | None = None, evaluation: str | None = None
    ) -> None:
        self.device = choose_device(recipe.device)
        if not is_local(output):
            raise UserError(f"{output}: a run folder must be on a local disk in this version")
        self.run_folder = local_path(output)
        self.run_folder.mkdir(parents=True, exist_ok=True)
        self.rank, self.world = rank(), world_size()
        self._lock = own_run_folder(self.run_folder) if self.rank == 0 else None
        barrier()
        self.shards = ShardDataset(data)
        source = self._teacher_run(recipe, teacher)
        if recipe.model is None and source is not None and recipe.stage == "gram":
            recipe = recipe.model_copy(update={"model": trained_architecture(source).model_dump(mode="json")})
        self.recipe = recipe
        if recipe.batch % self.world:
            raise UserError(f"batch {recipe.batch} cannot be divided among {self.world} processes")
        self.slots = share(recipe.batch, self.rank, self.world)
        self.journal = Journal(self.run_folder, writes=self.rank == 0)
        self.watch = Watch(recipe.guards, self.journal)
        self._build(source)
        self.rate_factor, self._rate_reason = scaled_learning_rate(recipe.optimiser, recipe.guards, recipe.batch)
        self.knn = PeriodicKnn(evaluation, self.device) if evaluation else None

    @staticmethod
    def _teacher_run(recipe: Recipe, teacher: str | None) -> Path | None:
        if recipe.stage == "pretrain":
            if teacher:
                raise UserError("--teacher: stage pretrain starts from random weights and takes no teacher")
            return None
        if not teacher:
            raise UserError(f"--teacher: stage {recipe.stage} needs the run folder of a trained teacher")
        return local_path(teacher)

    def _build(self, source: Path | None) -> None:
        """Learners and their teacher, by the stage."""
        recipe = self.recipe
        if recipe.stage == "distil":
            assert source is not None
            taught = load_trained(source, self.device)
            stride, size = taught.backbone.config.stride, recipe.crops.global_size
            self.learners = []
            for number, student in enumerate(recipe.students, start=1):
                spec, seed = architecture(student.model), recipe.seed + 100 * number
                scale = _scale(student.name, spec, stride)
                rate = student.learning_rate_factor
                self.learners.append(Learner(student.name, spec, recipe, seed, self.device, scale, rate))
            self.teacher = Teacher(taught, recipe, hides=False)
            self._check_prototypes(taught)
        else:
            assert recipe.model is not None
            spec = architecture(recipe.model)
            stride, size = spec.stride, recipe.crops.global_size
            learner = Learner("", spec, recipe, recipe.seed, self.device)
            self.learners = [learner]
            self._untrained(learner)
            gram = None
            if recipe.stage == "gram":
                assert source is not None
                gram = load_trained(source, self.device)
                self._check_prototypes(gram)
                self._continue(learner, source)
            self.teacher = Teacher(learner.average, recipe, hides=True, gram=gram)
        if size % stride:
            raise UserError(f"crops.global_size {size} is not a multiple of the teacher's patch size {stride}")
        self.grid = size // stride
        self.scale = max(learner.scale for learner in self.learners)
        if recipe.stage == "distil":
            for learner in self.learners:
                self._untrained(learner)

    def _continue(self, learner: Learner, source: Path) -> None:
        """Start ``learner`` from the student and the average of the newest checkpoint of ``source``."""
        checkpoint = latest_checkpoint(source)
        assert checkpoint is not None
        state = learner.state()
        wanted = {"learners": {"teacher": {name: state[name] for name in ("student", "average")}}}
        load_checkpoint(checkpoint, wanted)

    def _check_prototypes(self, taught: torch.nn.Module) -> None:
        for kind in ("dino", "ibot"):
            theirs, ours = getattr(taught, f"{kind}_head").prototypes, getattr(self.recipe.heads, kind).prototypes
            if theirs != ours:
                raise UserError(
                    f"heads.{kind}.prototypes is {ours}, and the teacher's head has {theirs}; make them equal"
                )

    def _untrained(self, learner: Learner) -> None:
        """Export the network before its first step, the baseline of every evaluation."""
        if self.rank == 0:
            export_learner(learner, self.run_folder, 0, self.recipe, latest=False)

    def run(self) -> None:
        """Train from the newest checkpoint, or from the start, to the last step; then let go of the run folder."""
        try:
            self._run()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _run(self) -> None:
        recipe = self.recipe
        if self.rank == 0:
            write_atomically(self.run_folder / "recipe.yaml", dump_recipe(recipe))
        start = self._resume()
        workers = math.ceil(recipe.workers / self.world)
        batches = step_batches(
            self.shards, recipe, self.slots, self.grid, self.scale, start, workers, pin=self.device.type == "cuda"
        )
        with Progress(
            recipe.name, recipe.steps, "steps", done=start, stream=None if self.rank == 0 else io.StringIO()
        ) as bar:
            waiting = time.perf_counter()
            for batch in batches:
                waited = time.perf_counter() - waiting
                for problem in batch.unreadable:
                    self.journal.own_event("unreadable-image", batch.step, f"{problem}; another image took its place")
                values = self._step(batch.step, Views(batch.to(self.device), recipe.crops, self.scale))
                seconds = time.perf_counter() - waiting
                if values:
                    values |= {
                        "data_wait_seconds": waited,
                        "step_seconds": seconds,
                        "images_per_second": recipe.batch / seconds,
                    }
                    self.journal.metrics(batch.step, values)
                bar.advance(note=f"loss {values['loss']:.3f}" if "loss" in values else "")
                self._milestones(batch.step)
                waiting = time.perf_counter()
        if start >= recipe.steps:
            self._finish(recipe.steps)

    def _step(self, step: int, views: Views) -> dict[str, float]:
        """One optimiser step; numbers for the log where one is due (empty otherwise)."""
        recipe = self.recipe
        logged = self._due(step, recipe.cadence.log)
        masks = views.batch.masks
        with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            targets = self.teacher.targets(views, masks, step)
        draws = StepDraws.for_images(recipe.seed, step, self.slots, recipe.batch, (2, recipe.crops.local_count))
        parts: dict[str, Tensor] = {}
        for learner in self.learners:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                total, losses, features = learner.losses(views, targets, draws)
            total.backward()
            parts |= {learner.prefix + name: value for name, value in losses.items()}
            if logged:
                measures = collapse_measures(targets.cls.flatten(0, 1), features)
                parts |= {learner.prefix + name: value for name, value in measures.items()}
        self._average_gradients()
        norms = {f"{lr.prefix}gradient_norm/{name}": norm for lr in self.learners for name, norm in lr.clip().items()}
        norm = torch.stack(list(norms.values())).sum()
        if self.watch.finite(step, bool(torch.isfinite(norm)), float(norm)):
            for learner in self.learners:
                learner.update(step, self.rate_factor)
        for learner in self.learners:
            learner.optimiser.zero_grad(set_to_none=True)
        return self._reduced(step, parts, norms) if logged else {}

    def _average_gradients(self) -> None:
        """Each process's gradients are of its share of the loss; their mean is the gradient of the whole batch's."""
        if self.world == 1:
            return
        gradients = [p.grad for learner in self.learners for p in learner.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        pieces = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [piece.view_as(g) for piece, g in zip(pieces, gradients, strict=True)])

    def _reduced(self, step: int, parts: dict[str, Tensor], norms: dict[str, Tensor]) -> dict[str, float]:
        stacked = mean_over_ranks(torch.stack([value.float() for value in parts.values()]))
        values = dict(zip(parts, stacked.tolist(), strict=True))
        values |= {name: float(norm) for name, norm in norms.items()}
        if "loss" not in values:
            values["loss"] = sum(values[f"{learner.prefix}loss"] for learner in self.learners)
        settings, steps = self.recipe.optimiser, self.recipe.steps
        values |= {
            "learning_rate": settings.learning_rate.at(step, steps) * self.rate_factor,
            "weight_decay": settings.weight_decay.at(step, steps),
            "teacher_momentum": self.recipe.teacher.momentum.at(step, steps),
            "teacher_temperature": self.recipe.teacher.temperature.at(step, steps),
            "skipped_steps": float(self.watch.skipped),
        }
        for learner in self.learners:
            names = ("target_entropy", "prototype_use", "feature_rank")
            self.watch.collapse(step, {name: values[learner.prefix + name] for name in names})
        return values

    def _due(self, step: int, every: int) -> bool:
        return bool(every) and ((step + 1) % every == 0 or step + 1 == self.recipe.steps)

    def _milestones(self, step: int) -> None:
        """What follows a finished step: evaluation with an export, then the checkpoint."""
        cadence, done = self.recipe.cadence, step + 1
        if self._due(step, cadence.evaluate):
            self._export(done)
            self._evaluate(step)
        if self._due(step, cadence.checkpoint):
            save_checkpoint(self.run_folder, done, self._state(done), cadence.keep_checkpoints)
        if done == self.recipe.steps:
            self._finish(done)

    def _evaluate(self, step: int) -> None:
        if self.knn is None:
            return
        scores = {
            f"{learner.prefix}knn_top1": self.knn(learner.average.backbone, self._side(learner), self.recipe.crops)
            for learner in self.learners
        }
        self.journal.metrics(step, scores)

    def _side(self, learner: Learner) -> int:
        return (self.recipe.export_size or self.recipe.crops.global_size) * learner.scale

    def _export(self, done: int) -> None:
        if self.rank == 0:
            for learner in self.learners:
                export_learner(learner, self.run_folder, done, self.recipe, latest=True)
        barrier()

    def _finish(self, done: int) -> None:
        self._export(done)
        self.journal.event("finished", done - 1, f"all {done} steps done", skipped_steps=self.watch.skipped)

    def _state(self, done: int) -> dict[str, object]:
        learners = {learner.name or "teacher": learner.state() for learner in self.learners}
        counters = torch.tensor([done, self.watch.consecutive, self.watch.skipped], dtype=torch.int64)
        return {"learners": learners, "counters": counters}

    def _resume(self) -> int:
        """Finished steps after loading the newest checkpoint; 0 where there is none."""
        checkpoint = latest_checkpoint(self.run_folder)
        if checkpoint is None:
            self.journal.cut_after(0)
            self.journal.event("started", 0, self._rate_reason, processes=self.world, dataset=self.shards.digest)
            barrier()
            return 0
        state = self._state(0)
        load_checkpoint(checkpoint, state)
        counters = state["counters"]
        assert isinstance(counters, Tensor)
        done, self.watch.consecutive, self.watch.skipped = (int(value) for value in counters)
        if done != step_of(checkpoint):
            raise UserError(f"{checkpoint}: holds step {done}; the folder was renamed")
        self.journal.cut_after(done)
        self.journal.event("resumed", done, f"from {checkpoint.name}", processes=self.world)
        barrier()
        return done


def _scale(name: str, spec: Architecture, stride: int) -> int:
    """How much larger than the teacher's a student's crops are, so that its grid equals the teacher's."""
    if spec.stride % stride:
        raise UserError(f"student '{name}': its stride {spec.stride} is not a multiple of the teacher's {stride}")
    return spec.stride // stride
