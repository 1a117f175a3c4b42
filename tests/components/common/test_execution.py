from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.common import execution
from components.common.execution import RUN_FOLDER_VARIABLE, execute, sample_step
from components.common.manifest import read_manifest
from components.common.step import InputSpec, Step
from components.common.store import Store
from foundry.errors import UserError


def run(toy, inputs=None, **settings):
    return execute(toy.step, toy.config(**settings), inputs or {}, store=toy.store)


def test_the_same_again_is_reused_and_says_so(toy, capsys) -> None:
    first, second = run(toy), run(toy)
    assert (first.reused, second.reused) == (False, True)
    assert first.path == second.path and first.digest == second.digest and second.metrics == first.metrics
    assert second.metrics == {"rows": 3, "nested": {"half": 0.5}}
    assert len(toy.calls()) == 1
    lines = capsys.readouterr().out.splitlines()
    name = first.fingerprint[:12]
    assert lines[0] == f"toy: running (fingerprint {name}…)"
    assert lines[-1].startswith(f"toy: reused (fingerprint {name}…, made 20")


def test_a_changed_setting_runs_again_and_a_transient_one_does_not(toy) -> None:
    first = run(toy)
    assert run(toy, workers=7).reused
    changed = run(toy, rows=4)
    assert not changed.reused and changed.fingerprint != first.fingerprint and changed.digest != first.digest
    assert run(toy).reused and len(toy.calls()) == 2


def test_changed_code_runs_again_and_a_comment_does_not(toy) -> None:
    run(toy)
    toy.edit("table.py", "def rows_of", "# how rows are named\ndef rows_of")
    assert run(toy).reused
    toy.edit("table.py", "row {", "line {")
    assert not run(toy).reused


def test_a_changed_input_runs_again_wherever_it_lies(toy, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text("content")
    first = run(toy, {"source": str(tmp_path / "a")})
    assert run(toy, {"source": str(tmp_path / "b")}).reused
    assert run(toy, {"source": f"file://{tmp_path}/b"}).reused
    (tmp_path / "a" / "x.txt").write_text("CONTENT")
    changed = run(toy, {"source": str(tmp_path / "a")})
    assert not changed.reused
    rows = read_manifest(first.path).inputs["source"], read_manifest(changed.path).inputs["source"]
    assert rows[0].digest != rows[1].digest and rows[0].url == rows[1].url == str(tmp_path / "a")


def test_a_result_as_input_counts_by_its_content_and_is_named_in_the_manifest(toy, tmp_path: Path) -> None:
    before = execute(toy.step, toy.config(), {}, tmp_path / "shown", store=toy.store)
    through_store = run(toy, {"before": str(before.path)}, rows=5)
    assert run(toy, {"before": str(tmp_path / "shown")}, rows=5).reused
    row = read_manifest(through_store.path).inputs["before"]
    assert (row.step, row.fingerprint, row.digest) == ("toy", before.fingerprint, before.digest)
    (tmp_path / "shown" / "part" / "table.txt").unlink()
    with pytest.raises(UserError, match=r"before=.*shown: it is damaged \(part/table.txt is missing\)"):
        run(toy, {"before": str(tmp_path / "shown")}, rows=5)


def test_inputs_are_checked_at_the_door(toy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no input named 'sorce'; did you mean 'source'"):
        run(toy, {"sorce": "x"})
    with pytest.raises(UserError, match="nowhere: no such file"):
        run(toy, {"source": str(tmp_path / "nowhere")})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: the folder is empty"):
        run(toy, {"source": str(tmp_path / "empty")})
    (tmp_path / "empty" / "x").write_text("x")
    with pytest.raises(UserError, match="before=.*: not the result of a step"):
        run(toy, {"before": str(tmp_path / "empty")})
    with pytest.raises(UserError, match="there are only sample: and sample:evaluation"):
        run(toy, {"source": "sample:other"})
    assert toy.calls() == []


def test_a_persons_folder_may_hold_any_manifest(toy, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    (tmp_path / "x.jpg").write_text("x")
    assert not run(toy, {"source": str(tmp_path)}).reused
    (tmp_path / "x.jpg").write_text("y")
    assert not run(toy, {"source": str(tmp_path)}).reused


def test_an_input_may_say_itself_what_counts(toy, tmp_path: Path) -> None:
    import dataclasses

    def only_names(url: str) -> str:
        if url == "none such":
            raise UserError("none such: is nowhere")
        return " ".join(sorted(path.name for path in Path(url).iterdir()))

    step = dataclasses.replace(toy.step, inputs=(InputSpec("source", "names", kind="url", digest=only_names),))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("1")
    first = execute(step, toy.config(), {"source": str(tmp_path / "d")}, store=toy.store)
    assert read_manifest(first.path).inputs["source"].digest == "a"
    (tmp_path / "d" / "a").write_text("2")
    assert execute(step, toy.config(), {"source": str(tmp_path / "d")}, store=toy.store).reused
    (tmp_path / "d" / "b").write_text("")
    assert not execute(step, toy.config(), {"source": str(tmp_path / "d")}, store=toy.store).reused
    with pytest.raises(UserError, match="^toy: input source=none such: is nowhere$"):
        execute(step, toy.config(), {"source": "none such"}, store=toy.store)


def test_a_missing_required_input_is_named(toy) -> None:
    needy = Step(
        name="needy",
        summary="",
        config=toy.step.config,
        inputs=(InputSpec("dataset", "curated dataset"),),
        run=toy.step.run,
        code=toy.step.code,
    )
    with pytest.raises(UserError, match="needy: input 'dataset' is missing"):
        execute(needy, toy.config(), {"dataset": ""}, store=toy.store)


def test_a_text_input_is_its_own_digest(toy) -> None:
    first = run(toy, {"champion": "sha256:1"})
    assert run(toy, {"champion": "sha256:1"}).reused
    assert not run(toy, {"champion": "sha256:2"}).reused
    assert read_manifest(first.path).inputs["champion"].url == "sha256:1"


@pytest.mark.parametrize("value", ["", "none"])
def test_an_optional_input_left_empty_is_not_given(toy, value: str) -> None:
    first = run(toy)
    assert run(toy, {"source": value}).fingerprint == first.fingerprint


def test_the_environment_is_part_of_the_name(toy) -> None:
    import dataclasses

    def on(device: str):
        step = dataclasses.replace(toy.step, environment=lambda config: {"device": device})
        return execute(step, toy.config(), {}, store=toy.store)

    cpu, gpu = on("cpu"), on("cuda")
    assert cpu.fingerprint != gpu.fingerprint and on("cpu").reused
    assert read_manifest(gpu.path).environment == {"device": "cuda"}


def test_an_impure_step_always_runs_in_a_fresh_folder(toy) -> None:
    import dataclasses

    step = dataclasses.replace(toy.step, pure=False)
    outcomes = [execute(step, toy.config(), {}, store=toy.store) for _ in range(2)]
    assert len({outcome.path for outcome in outcomes}) == 2
    assert toy.calls() == ["3 []", "3 []"]
    assert all(read_manifest(outcome.path) is not None for outcome in outcomes)


def test_a_disk_without_room_is_found_before_the_step_starts(toy) -> None:
    import dataclasses

    step = dataclasses.replace(toy.step, disk_bytes=lambda config, inputs: 1 << 60)
    with pytest.raises(UserError, match="toy needs .* MiB"):
        execute(step, toy.config(), {}, store=toy.store)
    assert toy.calls() == []


def test_outcomes_are_listed_in_the_run_folder(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, str(tmp_path))
    outcomes = [run(toy), run(toy)]
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [row["reused"] for row in rows] == [False, True]
    assert [row["fingerprint"] for row in rows] == [outcome.fingerprint for outcome in outcomes]
    assert rows[0]["path"] == str(outcomes[0].path) and rows[0]["metrics"]["rows"] == 3


def test_the_sample_is_a_stored_result_with_two_faces(toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    def build(config, inputs, output: Path):
        for name in ("pool", "evaluation"):
            (output / name).mkdir()
            (output / name / "x.txt").write_text(name)
        return {}

    # The real one takes seconds; what is tested here is how its folders become inputs.
    monkeypatch.setattr(execution, "sample_step", lambda: dataclasses.replace(sample_step(), run=build))
    pool = run(toy, {"source": "sample:"})
    labelled = run(toy, {"source": "sample:evaluation"})
    assert run(toy, {"source": "sample:"}).reused
    assert (pool.path / "source.txt").read_text().endswith("/pool")
    assert (labelled.path / "source.txt").read_text().endswith("/evaluation")
    rows = [read_manifest(outcome.path).inputs["source"] for outcome in (pool, labelled)]
    assert rows[0].step == "sample" and rows[0].fingerprint == rows[1].fingerprint and rows[0].digest != rows[1].digest


def test_auto_takes_the_labels_of_the_sample_only_for_the_sample(toy, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")
    curation = Step(
        name="curation",
        summary="",
        config=toy.step.config,
        inputs=(InputSpec("pool", "images", kind="url"),),
        run=toy.step.run,
        code=toy.step.code,
        tracked=False,
    )
    dataset = execute(curation, toy.config(), {"pool": str(tmp_path / "mine")}, store=toy.store)
    given = {"dataset": str(dataset.path), "evaluation": "auto"}
    assert execution._resolve_auto(given) == {"dataset": str(dataset.path)}
    manifest = dataset.path / "manifest.json"
    document = json.loads(manifest.read_text())
    document["inputs"]["pool"]["url"] = "sample:"
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(document))
    assert execution._resolve_auto(given) == {"dataset": str(dataset.path), "evaluation": "sample:evaluation"}


def test_a_step_is_a_tracked_run_with_lineage_and_its_metrics_file_is_followed(toy, tmp_path: Path) -> None:
    import dataclasses

    from components.common import tracking

    def train(config, inputs, output: Path):
        rows = [{"step": step, "time": 1000.0 + step, "loss": 1.0 / (step + 1)} for step in range(3)]
        (output / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (output / "report.html").write_text("<p>good</p>")
        return {"knn_top1": 0.5}

    changes = {"run": train, "tracked": True, "records": ("metrics.jsonl",), "shown": ("report.html",)}
    step = dataclasses.replace(toy.step, **changes)
    outcomes = [execute(step, toy.config(rows=9), {"champion": "c"}, store=toy.store) for _ in range(2)]
    assert [outcome.reused for outcome in outcomes] == [False, True]
    client = tracking.client()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    made, reused = client.search_runs(experiments, order_by=["attributes.start_time ASC"])
    assert made.info.status == reused.info.status == "FINISHED"
    history = client.get_metric_history(made.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    assert made.data.metrics["knn_top1"] == reused.data.metrics["knn_top1"] == 0.5
    assert made.data.params["toy.rows"] == "9"
    assert [file.path for file in client.list_artifacts(made.info.run_id)] == ["report.html"]
    for run_data in (made, reused):
        tags = run_data.data.tags
        assert tags["foundry.fingerprint"] == outcomes[0].fingerprint and tags["foundry.digest"] == outcomes[0].digest
        assert tags["foundry.input.champion.url"] == "c"
    assert (made.data.tags["foundry.reused"], reused.data.tags["foundry.reused"]) == ("false", "true")


def test_the_store_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOUNDRY_HOME", str(tmp_path / "home"))
    assert Store().root == tmp_path / "home" / "store"
    monkeypatch.setenv("FOUNDRY_STORE", str(tmp_path / "other"))
    assert Store().root == tmp_path / "other"
    assert Store(tmp_path / "given").root == tmp_path / "given"
