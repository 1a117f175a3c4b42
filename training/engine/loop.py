"""The training loop of every stage: pretraining, Gram anchoring, distillation."""

from __future__ import annotations

import io
import math
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foundry.errors import UserError
from foundry.home import home
from foundry.progress import Progress
from foundry.storage import is_local, local_path, write_atomically
from training.data.loader import Batch, step_batches, step_order
from training.data.sampler import share
from training.data.shards import Images, JointDataset, ShardDataset
from training.distributed import barrier, mean_over_ranks, merged_over_ranks, rank, sum_over_ranks, world_size
from training.engine.allocation import keep_freed_memory
from training.engine.anchoring import choose_gram_teacher
from training.engine.checkpoint import Checkpointer, latest_checkpoint, load_checkpoint, step_of
from training.engine.division import Division, Exchange
from training.engine.exports import export_learner
from training.engine.guards import Watch, collapse_measures, feature_rank
from training.engine.journal import Journal
from training.engine.learner import Learner, Network
from training.engine.parallel import Parallel
from training.engine.probing import Probing
from training.engine.process import choose_device, own_run_folder
from training.engine.served_metrics import ServedMetrics
from training.engine.sources import (
    HEADS,
    check_statistics,
    continued_model,
    has_heads,
    head_recipe,
    load_start,
    load_teacher,
    load_trained,
    trained_architecture,
)
from training.engine.teaching import Teacher
from training.engine.views import Views
from training.models.architectures import Architecture, architecture
from training.models.build import Backbone
from training.models.draws import StepDraws
from training.recipe import Recipe, dump_recipe, matched_to, scaled_learning_rate


class Trainer:
    """One run of ``recipe`` over curated data into the run folder ``output``.

    ``data``: a dataset, or several by name where the recipe mixes them. ``teacher``: run folder to continue (gram) or
    distil from. ``start``: backbone of a warm start (Hugging Face folder, official file or run folder). ``evaluation``:
    labelled set for the periodic k-NN. Every draw is a function of (seed, step, place in the whole batch), so neither
    the number of processes nor of loader workers nor of parts of a batch nor a restart changes what is learned.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: str | Mapping[str, str],
        output: str,
        teacher: str | None = None,
        evaluation: str | None = None,
        start: str | None = None,
    ) -> None:
        self.device = choose_device(recipe.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.images, self._kinds = open_datasets(recipe, data)
        if not is_local(output):
            raise UserError(f"{output}: a run folder must be on a local disk in this version")
        self.run_folder = local_path(output)
        self.run_folder.mkdir(parents=True, exist_ok=True)
        self.rank, self.world = rank(), world_size()
        self._lock = own_run_folder(self.run_folder) if self.rank == 0 else None
        barrier()
        source = self._teacher_run(recipe, teacher)
        if source is not None and recipe.stage == "gram":
            model = continued_model(trained_architecture(source), recipe.model)
            recipe = recipe.model_copy(update={"model": model})
        if source is not None and recipe.stage == "distil":
            check_statistics(source, recipe)
            recipe = matched_to(recipe, trained_architecture(source).dim)
        backbone = self._start(recipe, start)
        if recipe.model is None and backbone is not None:
            recipe = recipe.model_copy(update={"model": backbone.config.model_dump(mode="json")})
        self.recipe = recipe
        if recipe.batch < self.world * recipe.accumulate:
            parts = f" in {recipe.accumulate} parts each" if recipe.accumulate > 1 else ""
            raise UserError(f"batch {recipe.batch} is too small for {self.world} processes{parts}")
        self.slots = share(recipe.batch, self.rank, self.world)
        served = ServedMetrics.from_environment(recipe.name, self.run_folder) if self.rank == 0 else None
        self.served = served
        self.journal = Journal(self.run_folder, writes=self.rank == 0, served=served)
        self.watch = Watch(recipe.guards, self.journal)
        self.parallel = Parallel(recipe, self.device)
        self.division = Division.of(recipe.students)
        self.exchange = Exchange(self.division, recipe.batch) if self.division else None
        self.learning_slots = self.division.slots(recipe.batch) if self.division else self.slots
        self.checkpoints = Checkpointer(self.run_folder, recipe.cadence.keep_checkpoints, recipe.cadence.keep_every)
        self._build(source, backbone)
        self.rate_factor, self._rate_reason = scaled_learning_rate(recipe.optimiser, recipe.guards, recipe.batch)
        probes = self.learners[0].parallel.rank == 0
        self.probing = Probing(recipe, self.images, evaluation, self.device, probes)

    @staticmethod
    def _teacher_run(recipe: Recipe, teacher: str | None) -> Path | None:
        if recipe.stage == "pretrain":
            if teacher:
                raise UserError("--teacher: stage pretrain takes no teacher; a warm start takes --start")
            return None
        if not teacher:
            raise UserError(f"--teacher: stage {recipe.stage} needs the run folder of a trained teacher")
        return local_path(teacher)

    @staticmethod
    def _start(recipe: Recipe, start: str | None) -> Backbone | None:
        if recipe.warm_start is None:
            if start:
                raise UserError("--start: the recipe has no warm_start; add 'warm_start: {}' to continue a backbone")
            return None
        if not start:
            raise UserError("--start: a recipe with warm_start needs the backbone to continue")
        return load_start(start, recipe)

    def _build(self, source: Path | None, backbone: Backbone | None) -> None:
        """Learners and their teacher, by the stage."""
        recipe = self.recipe
        if recipe.stage == "distil":
            assert source is not None
            taught = load_teacher(source, heads=recipe.heads.matching == "scores")
            self._check_prototypes(taught)
            self.stride = taught.backbone.config.stride
            self.learners = []
            group = self.division.group if self.division else None
            parallel = Parallel(recipe, self.device, group) if group else self.parallel
            scales = [_scale(each.name, architecture(each.model), self.stride) for each in recipe.students]
            for number, (student, scale) in enumerate(zip(recipe.students, scales, strict=True)):
                if self.division and number != self.division.mine:
                    continue
                spec, seed = architecture(student.model), student_seed(recipe.seed, student.name)
                rate = student.learning_rate_factor
                self.learners.append(Learner(student.name, spec, recipe, seed, parallel, scale, rate))
            self.teacher = Teacher(self._frozen(taught), recipe, hides=False, group=group)
            self.scale = recipe.crops.made_at or max(scales)
            if any(self.scale % scale for scale in scales):
                raise UserError(f"crops.made_at {self.scale} is not a multiple of the students' {max(scales)}")
        else:
            assert recipe.model is not None
            spec = architecture(recipe.model)
            self.stride = spec.stride
            learner = Learner("", spec, recipe, recipe.seed, self.parallel, start=backbone)
            self.learners, self.scale = [learner], recipe.crops.made_at or learner.scale
            self._untrained(learner)
            gram = None
            if recipe.stage == "gram":
                assert source is not None
                chosen = choose_gram_teacher(source, recipe.teacher, self.run_folder, first=self.rank == 0)
                taught = load_trained(source)
                self._check_prototypes(taught)
                if chosen is not None:
                    taught.backbone.load_state_dict(load_start(str(chosen), recipe).state_dict())
                gram = self._frozen(taught)
                self._continue(learner, source)
            self.teacher = Teacher(learner.average, recipe, hides=True, gram=gram)
        for sizes in recipe.crops.sizes():
            for name in ("global_size", "gram_size"):
                if (size := getattr(sizes, name)) % self.stride:
                    raise UserError(f"crops.{name} {size} is not a multiple of the teacher's patch size {self.stride}")
        if recipe.stage == "gram":
            self._check_gram_crops()
        if recipe.stage == "distil":
            for learner in self.learners:
                self._untrained(learner)

    def _frozen(self, network: Network) -> Network:
        return self.parallel.inference(network.to(self.device))

    def _continue(self, learner: Learner, source: Path) -> None:
        """Start ``learner`` from the student and the average of the newest checkpoint of ``source``."""
        checkpoint = latest_checkpoint(source)
        assert checkpoint is not None
        state = learner.state()
        wanted = {"learners": {"teacher": {name: state[name] for name in ("student", "average")}}}
        load_checkpoint(checkpoint, wanted)

    def _check_prototypes(self, taught: torch.nn.Module) -> None:
        heads = self.recipe.heads
        if heads.matching == "features":
            return
        for kind, ours in (("dino", heads.dino.prototypes), ("ibot", heads.of_patches().prototypes)):
            theirs = getattr(taught, f"{kind}_head").prototypes
            if theirs != ours:
                raise UserError(
                    f"heads.{kind}.prototypes is {ours}, and the teacher's head has {theirs}; make them equal"
                )

    def _check_gram_crops(self) -> None:
        """Raise :class:`UserError` where a Gram teacher's larger crops would show no more than the student's."""
        larger = [each.gram_size for each in self.recipe.crops.sizes() if each.gram_size > each.global_size]
        if larger and (side := int(np.median(self.images.shorter_sides()))) < max(larger):
            raise UserError(
                f"crops.gram_size is {max(larger)}, and half of the images are at most {side} pixels wide or high: the "
                "Gram teacher would see no more than its student; take larger images, or make crops.gram_size equal to "
                "crops.global_size"
            )

    def _untrained(self, learner: Learner) -> None:
        """Export the network before its first step, the baseline of every evaluation."""
        average = learner.whole_average()
        if learner.parallel.rank == 0:
            export_learner(learner, average, self.run_folder, 0, self.recipe, latest=False)

    def run(self) -> None:
        """Train from the newest checkpoint, or from the start, to the last step; then let go of the run folder."""
        try:
            self._run()
        finally:
            if self.served is not None:
                self.served.close()
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
            self.images,
            recipe,
            step_order(self.images, recipe, self._kinds),
            self.slots,
            self.stride,
            self.scale,
            start,
            workers,
            self.device,
        )
        with Progress(
            recipe.name, recipe.steps, "steps", done=start, stream=None if self.rank == 0 else io.StringIO()
        ) as bar:
            waiting = time.perf_counter()
            for batch in batches:
                waited = time.perf_counter() - waiting
                for problem in batch.unreadable:
                    self.journal.own_event("unreadable-image", batch.step, f"{problem}; another image took its place")
                values = self._step(batch.step, batch)
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

    def _step(self, step: int, batch: Batch) -> dict[str, float]:
        """One optimiser step; numbers for the log where one is due (empty otherwise)."""
        recipe = self.recipe
        logged = self._due(step, recipe.cadence.log)
        views = held = self._views(batch)
        if self.exchange is not None:
            views = self._views(self.exchange.batch(batch.to(self.device)))
        draws = [
            StepDraws.for_images(recipe.seed, step, slots, recipe.batch, (2, recipe.crops.local_count))
            for slots in parts_of(self.learning_slots, recipe.accumulate)
        ]
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.parallel.bf16)
        with autocast:
            if self.exchange is None:
                targets = self.teacher.targets(views, step)
            else:
                targets = self.teacher.divided_targets(held, views, self.exchange, step)
        parts: dict[str, Tensor] = {}
        for learner in self.learners:
            found = learner.backward(views, targets, draws, autocast)
            parts |= {learner.prefix + name: value for name, value in found.losses.items()}
            if logged:
                measures = {"feature_rank": feature_rank(found.features)}
                if recipe.heads.matching == "scores":
                    measures |= collapse_measures(torch.cat([each.cls.flatten(0, 1) for each in targets]))
                parts |= {learner.prefix + name: value for name, value in measures.items()}
        norms = {f"{lr.prefix}gradient_norm/{name}": norm for lr in self.learners for name, norm in lr.clip().items()}
        total = torch.stack(list(norms.values())).sum()
        if self.division is not None:
            sum_over_ranks(total)
        norm = float(total)  # the only point at which the host waits for the device
        if self.watch.finite(step, math.isfinite(norm), norm):
            for learner in self.learners:
                learner.update(step, self.rate_factor)
            self.teacher.move_centres()
        if self.teacher.refresh_gram(step + 1):
            self.journal.event("gram-teacher", step, f"the Gram teacher is now the teacher after {step + 1} steps")
        for learner in self.learners:
            learner.forget_gradients()
        return self._reduced(step, parts, norms) if logged else {}

    def _views(self, batch: Batch) -> list[Views]:
        """The parts of ``batch`` on the device."""
        parts = [part.to(self.device) for part in batch.parts(self.recipe.accumulate)]
        return [Views(part, self.recipe.crops, self.scale) for part in parts]

    def _reduced(self, step: int, parts: dict[str, Tensor], norms: dict[str, Tensor]) -> dict[str, float]:
        group = self.division.group if self.division else None
        stacked = mean_over_ranks(torch.stack([value.float() for value in parts.values()]), group)
        values = dict(zip(parts, stacked.tolist(), strict=True))
        values |= dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True))
        names = [learner.name for learner in self.learners]
        if self.division is not None:
            names = [student.name for student in self.recipe.students]
            values = merged_over_ranks(values)
        if "loss" not in values:
            values["loss"] = sum(values[f"{name}/loss"] for name in names)
        settings, steps = self.recipe.optimiser, self.recipe.steps
        values |= {
            "learning_rate": settings.learning_rate.at(step, steps) * self.rate_factor,
            "weight_decay": settings.weight_decay.at(step, steps),
            "teacher_momentum": self.recipe.teacher.momentum.at(step, steps),
            "teacher_temperature": self.recipe.teacher.temperature.at(step, steps),
            "skipped_steps": float(self.watch.skipped),
        }
        prototypes = self.recipe.heads.dino.prototypes
        attainable = min(1.0, 2 * len(self.learning_slots) / prototypes)
        for name in names:
            prefix = f"{name}/" if name else ""
            measures = ("target_entropy", "prototype_use", "feature_rank")
            found = {each: values[prefix + each] for each in measures if prefix + each in values}
            self.watch.collapse(step, found, prototypes, attainable)
        return values

    def _due(self, step: int, every: int) -> bool:
        return bool(every) and ((step + 1) % every == 0 or step + 1 == self.recipe.steps)

    def _milestones(self, step: int) -> None:
        """What follows a finished step: a checkpoint's end, evaluation with an export, the next checkpoint."""
        cadence, done = self.recipe.cadence, step + 1
        if self._due(step, cadence.log):
            self.checkpoints.finish()
        if self._due(step, cadence.evaluate):
            self._export(done, measured=True)
        if self._due(step, cadence.checkpoint):
            self.checkpoints.save(done, self._state(done))
        if done == self.recipe.steps:
            self._finish(done)

    def _export(self, done: int, measured: bool = False) -> None:
        """Export every average; ``measured``: also log what the probes say of it."""
        scores: dict[str, float] = {}
        for learner in self.learners:
            average = learner.whole_average()
            if learner.parallel.rank == 0:
                export_learner(learner, average, self.run_folder, done, self.recipe, latest=True)
            if measured:
                side = (self.recipe.export_size or self.recipe.crops.global_size) * learner.scale
                found = self.probing(average.backbone, side)
                scores |= {learner.prefix + name: value for name, value in found.items()}
        if self.division is not None:
            scores = merged_over_ranks(scores)
        if scores:
            self.journal.metrics(done - 1, scores)
        barrier()

    def _finish(self, done: int) -> None:
        self.checkpoints.finish()
        self._export(done)
        self.journal.event("finished", done - 1, f"all {done} steps done", skipped_steps=self.watch.skipped)

    def _state(self, done: int) -> dict[str, object]:
        learners = {learner.name or "teacher": learner.state() for learner in self.learners}
        counters = torch.tensor([done, self.watch.consecutive, self.watch.skipped], dtype=torch.int64)
        return {"learners": learners, "counters": counters, **self.teacher.state()}

    def _resume(self) -> int:
        """Finished steps after loading the newest checkpoint; 0 where there is none."""
        checkpoint = latest_checkpoint(self.run_folder)
        if checkpoint is None:
            self.journal.cut_after(0)
            self.journal.event("started", 0, self._rate_reason, processes=self.world, dataset=self.images.digest)
            if self.recipe.precision == "bf16" and not self.parallel.bf16:
                self.journal.event(
                    "float32",
                    0,
                    "without arithmetic for bfloat16, float32 is faster and is used instead",
                )
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


def teacher_with_heads(recipe: Recipe, data: str | Mapping[str, str], output: str, teacher: str | None) -> str | None:
    """``teacher`` of a run of ``recipe``; where it is a backbone without heads to distil from, the run folder, below
    ``output``, of the same backbone with heads that were trained on it. Every process calls it; a run that was killed
    goes on."""
    wanted = recipe.stage == "distil" and recipe.heads.matching == "scores"
    if not wanted or not teacher or has_heads(local_path(teacher)):
        return teacher
    check_statistics(local_path(teacher), recipe)
    folder = local_path(output) / HEADS
    Trainer(head_recipe(recipe), data, str(folder), start=teacher).run()
    return str(folder)


def open_datasets(recipe: Recipe, data: str | Mapping[str, str]) -> tuple[Images, list[np.ndarray] | None]:
    """The images of a run, and for a mixture the numbers of the images of each kind of step.

    Raises :class:`UserError` where the names of the datasets are not those of ``recipe.mixture``.
    """
    named = {"data": data} if isinstance(data, str) else dict(data)
    cache = home() / "cache" / "shards"
    opened = {name: ShardDataset(url, cache, int(recipe.cache_gib * 2**30)) for name, url in named.items()}
    wanted = {name for mixed in recipe.mixture for name in mixed.datasets}
    if not recipe.mixture:
        if len(opened) > 1:
            raise UserError(
                f"--data: {len(opened)} datasets, and the recipe has no 'mixture' that says how to mix them"
            )
        return next(iter(opened.values())), None
    if missing := sorted(wanted - set(opened)):
        raise UserError(f"--data: the recipe mixes a dataset '{missing[0]}'; give --data {missing[0]}=URL")
    if unused := sorted(set(opened) - wanted):
        raise UserError(f"--data: no step of the recipe's mixture takes the dataset '{unused[0]}'")
    joined = JointDataset(list(opened.values()))
    places = {name: number for number, name in enumerate(opened)}
    kinds = [[joined.members(places[name]) for name in mixed.datasets] for mixed in recipe.mixture]
    return joined, [np.concatenate(members) for members in kinds]


def parts_of(slots: range, count: int) -> list[range]:
    """``slots`` in ``count`` consecutive parts, sizes within 1."""
    places = [share(len(slots), number, count) for number in range(count)]
    return [slots[part.start : part.stop] for part in places]


def student_seed(seed: int, name: str) -> int:
    """Seed of a student's first weights: its name decides, not who else is trained beside it."""
    return seed + 100 * (1 + zlib.crc32(name.encode()) % 100_000)


def _scale(name: str, spec: Architecture, stride: int) -> int:
    """How much larger than the teacher's a student's crops are, so that its grid equals the teacher's."""
    if spec.stride % stride:
        raise UserError(f"student '{name}': its stride {spec.stride} is not a multiple of the teacher's {stride}")
    return spec.stride // stride
