import contextlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from components.common import tracking
from foundry.errors import UserError
from foundry.lifetime import free_port, process_identity

REPOSITORY = Path(__file__).resolve().parents[3]
VARIABLES = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "FOUNDRY_PARENT_RUN_ID",
)


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory):
    """A home whose database three processes made at the same moment; what each printed."""
    home = tmp_path_factory.mktemp("home with space #1")
    script = """
        import time
        from components.common import tracking
        experiment = tracking.initialise()
        with tracking.step_run("curation", config={}, lineage={}) as run:
            run.log_series({"step": i, "time": time.time(), "loss": i / 10} for i in range(60))
        print(experiment, run.run_id)
    """
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"FOUNDRY_HOME": str(home), "PYTHONPATH": str(REPOSITORY)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            cwd=home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        for _ in range(3)
    ]
    return home, [(*process.communicate(timeout=120), process.returncode) for process in started]


@pytest.fixture
def home(shared_home, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FOUNDRY_HOME", str(shared_home[0]))
    return shared_home[0]


def fetch(run_id):
    return tracking.client().get_run(run_id)


def test_processes_that_start_together_make_one_quiet_database(shared_home, home):
    outputs = shared_home[1]
    assert [(error, status) for _, error, status in outputs] == [("", 0)] * 3
    experiments, runs = zip(*(output.split() for output, _, _ in outputs), strict=True)
    assert len(set(experiments)) == 1 and len(set(runs)) == 3
    for run in runs:
        assert len(tracking.client().get_metric_history(run, "loss")) == 60
    assert {path.name for path in home.iterdir()} == {"mlflow"}, "no mlruns folder appears in the working folder"
    assert sorted(path.name for path in (home / "mlflow").iterdir()) == [".initialise.lock", "mlflow.db"]


def test_step_run_records_settings_lineage_and_metrics(home, capfd):
    config = {"images": {"minimum": 32, "names": ["a", "b"]}, "seed": None, "long": "x" * 7000, "empty": {}}
    lineage = {"fingerprint": "f1", "git_commit": "c" * 40, "git_dirty_digest": None, "dataset": {"digest": "d"}}
    with tracking.step_run("evaluation", config=config, lineage=lineage) as run:
        assert tracking.current_run() is run
        run.log_metrics({"knn/top@1": 0.5, "nan": float("nan"), "text": "no", "by": {"a": 1, "b": True}}, step=7)
    assert tracking.current_run() is None
    record = fetch(run.run_id)
    assert record.info.status == "FINISHED" and record.info.run_name == "evaluation"
    assert record.data.metrics == {"knn/top_1": 0.5, "by/a": 1.0, "by/b": 1.0}
    assert record.data.params.pop("evaluation.long").startswith("xxx")
    assert record.data.params == {
        "evaluation.images.minimum": "32", "evaluation.images.names": '["a", "b"]',
        "evaluation.seed": "null", "evaluation.empty": "{}",
    }  # fmt: skip
    tags = {name: value for name, value in record.data.tags.items() if name.startswith("foundry.")}
    assert tags.pop("foundry.process").endswith(process_identity(os.getpid()))
    assert tags == {
        "foundry.step": "evaluation", "foundry.reused": "false", "foundry.fingerprint": "f1",
        "foundry.dataset.digest": "d", "foundry.git_commit": "c" * 40,
    }  # fmt: skip
    assert record.data.tags["mlflow.source.git.commit"] == "c" * 40
    assert tracking.client().get_metric_history(run.run_id, "by/a")[0].step == 7
    assert capfd.readouterr() == ("", "")


def test_steps_nest_under_the_line_also_from_child_processes(home):
    with tracking.line_run("line", config={"curation": {"seed": 1}}) as line:
        with tracking.step_run("curation", config={}, lineage={}, reused=True) as step:
            pass
        assert os.environ[tracking.PARENT_VARIABLE] == line.run_id
    assert tracking.PARENT_VARIABLE not in os.environ
    assert fetch(step.run_id).data.tags["mlflow.parentRunId"] == line.run_id
    assert fetch(step.run_id).data.tags["foundry.reused"] == "true"
    assert fetch(line.run_id).data.params == {"curation.seed": "1"}
    assert "mlflow.parentRunId" not in fetch(line.run_id).data.tags


def test_a_given_run_is_used_and_left_open(home, monkeypatch):
    outside = tracking.client().create_run(tracking.initialise(), run_name="kubeflow task").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", outside)
    with tracking.step_run("curation", config={"seed": 3}, lineage={"fingerprint": "f2"}) as run:
        run.log_metrics({"images": 5})
    assert run.run_id == outside
    with tracking.line_run("line") as line, tracking.step_run("curation", config={}, lineage={}) as step:
        pass
    assert line.run_id == outside != step.run_id and os.environ["MLFLOW_RUN_ID"] == outside
    record = fetch(outside)
    assert record.info.status == "RUNNING" and record.info.run_name == "kubeflow task"
    assert record.data.params == {"curation.seed": "3"} and record.data.metrics == {"images": 5.0}
    assert record.data.tags["foundry.fingerprint"] == "f2"
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(UserError, match="0" * 32):
        with tracking.step_run("curation", config={}, lineage={}):
            pass


def test_an_exception_ends_the_run_as_failed_and_ctrl_c_as_killed(home):
    for error, status in ((ValueError("bad\nimage"), "FAILED"), (KeyboardInterrupt(), "KILLED")):
        with contextlib.suppress(type(error)), tracking.step_run("curation", config={}, lineage={}) as run:
            raise error
        assert fetch(run.run_id).info.status == status
    assert tracking.current_run() is None


def test_runs_of_dead_processes_are_marked_when_their_work_is_taken_over(home):
    client, experiment = tracking.client(), tracking.initialise()
    dead = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = process_identity(dead.pid)
    dead.communicate(b"\n")
    here = " ".join(tracking._machine())
    owners = {
        "dead": f"{here} {identity}",
        "alive": f"{here} {process_identity(os.getpid())}",
        "before reboot": f"{tracking._machine()[0]} other-boot pid:[1] {process_identity(os.getpid())}",
        "other host": f"elsewhere {here.split(' ', 1)[1]} {identity}",
        "another container": f"{' '.join(tracking._machine()[:2])} pid:[1] {identity}",
        "untagged": None,
    }
    runs = {}
    for who, owner in owners.items():
        tags = {"fingerprint": "f3"} | ({"process": owner} if owner else {})
        runs[who] = client.create_run(experiment, tags=tracking.tag_values(tags)).info.run_id
    other = client.create_run(experiment, tags=tracking.tag_values({"fingerprint": "f4", "process": owners["dead"]}))

    def killed():
        return {who for who, run in runs.items() if fetch(run).info.status == "KILLED"}

    with tracking.step_run("pretraining", config={}, lineage={"fingerprint": "f3"}) as run:
        assert killed() == {"dead", "before reboot"}
    with tracking.step_run("pretraining", config={}, lineage={"fingerprint": "f3"}, taken_over=True):
        assert killed() == set(owners)
    assert fetch(run.run_id).info.status == "FINISHED"
    assert fetch(other.info.run_id).info.status == "RUNNING"


def test_artifacts_keep_the_name_they_are_given(home, tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "a.svg").write_text("<svg/>")
    (tmp_path / "r.html").write_text("<p>")
    with tracking.step_run("evaluation", config={}, lineage={}) as run:
        run.log_artifact(tmp_path / "r.html", "report/report.html")
        run.log_artifact(tmp_path / "r.html")
        run.log_artifact(tmp_path / "plots", "report/plots")
    root = home / "mlflow" / "artifacts" / run.run_id / "artifacts"
    names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert names == {"report/report.html", "r.html", "report/plots/a.svg"}


def test_a_database_lost_while_a_step_runs_costs_one_warning(home, tmp_path, monkeypatch, capfd):
    """The step goes on, and is not slowed down by an attempt at every step."""
    copy = tmp_path / "mlflow.db"
    copy.write_bytes((home / "mlflow" / "mlflow.db").read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}")
    with tracking.step_run("pretraining", config={}, lineage={}) as run:
        copy.write_bytes(b"not a database " * (copy.stat().st_size // 15))
        for step in range(5):
            run.log_metrics({"loss": 1.0}, step=step)
        first = capfd.readouterr()
    assert first.out == "" and len(first.err.splitlines()) == 1
    assert first.err.startswith(f"warning: tracking: metrics of run {run.run_id} not recorded: ")
    assert len(capfd.readouterr().err.splitlines()) == 1, "the end of the run is tried once more, in one line"


def test_wrong_addresses_are_one_plain_error(home, tmp_path, monkeypatch):
    (tmp_path / "text.db").write_text("no database at all, but long enough to have a header of its own" * 20)
    (tmp_path / "file").write_text("")
    cases = {
        f"http://127.0.0.1:{free_port()}": "no MLflow server answers",
        "/some/folder": "database or on a server",
        f"file://{tmp_path}": "database or on a server",
        "htp://server": "unknown scheme 'htp'",
        "sqlite://": "name a file",
        f"sqlite:///{tmp_path}/text.db": "not a database",
        f"sqlite:///{tmp_path}/file/mlflow.db": "is not a folder",
        "mysql+absentdriver://host/db": "absentdriver",
    }
    for uri, words in cases.items():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(UserError, match=words) as caught:
            with tracking.step_run("curation", config={}, lineage={}):
                pass
        assert uri in str(caught.value)


def test_a_deleted_experiment_says_how_to_restore_it(home, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "gone")
    identity = tracking.initialise()
    tracking.client().delete_experiment(identity)
    with pytest.raises(UserError, match=f"restore -x {identity}"):
        tracking.initialise()


def test_a_database_left_half_made_by_a_kill_is_made_anew(fresh_home):
    (fresh_home / "mlflow").mkdir()
    (fresh_home / "mlflow" / ".mlflow.db.unfinished").write_bytes(b"half")
    (fresh_home / "mlflow" / ".mlflow.db.unfinished-journal").write_bytes(b"half")
    assert tracking.initialise() == tracking.initialise()
    assert sorted(path.name for path in (fresh_home / "mlflow").iterdir()) == [".initialise.lock", "mlflow.db"]


def test_messages_do_not_show_a_password(monkeypatch, fresh_home):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port()}")
    with pytest.raises(UserError, match="user:\\*\\*\\*@127.0.0.1") as caught:
        tracking.initialise()
    assert "secret" not in str(caught.value)


def test_a_relative_sqlite_address_is_the_same_from_every_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///a/mlflow.db")
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path}/a/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////data/mlflow.db")
    assert tracking.tracking_uri() == "sqlite:////data/mlflow.db"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("FOUNDRY_HOME", "/srv/foundry")
    assert tracking.tracking_uri() == "sqlite:////srv/foundry/mlflow/mlflow.db"


def test_names_are_those_that_mlflow_accepts():
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    for name in ("loss", "a@b", "ä/ö", "/x//y/..", "", "..", "é" * 300, "a\nb", "knn/top-1 (test)"):
        safe = tracking.safe_name(name)
        _validate_metric_name(safe)
        _validate_param_name(safe)


def test_importing_tracking_does_not_import_mlflow():
    code = "import sys; from components.common import tracking; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", "import json\n" + code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert not {"mlflow", "torch", "pandas", "sqlalchemy"} & set(json.loads(output.stdout))


@pytest.mark.slow
def test_a_server_that_goes_away_does_not_stop_a_step(mlflow_server, fresh_home, monkeypatch, capfd):
    uri, stop = mlflow_server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with tracking.step_run("pretraining", config={"seed": 1}, lineage={"fingerprint": "f"}) as run:
        run.log_metrics({"loss": 2.0}, step=1)
        record = fetch(run.run_id)
        assert record.data.params == {"pretraining.seed": "1"} and record.data.metrics == {"loss": 2.0}
        assert not record.info.artifact_uri.startswith("file:"), "the server decides where files go"
        run.log_artifact(REPOSITORY / "foundry" / "home.py", "code/home.py")
        assert [file.path for file in tracking.client().list_artifacts(run.run_id, "code")] == ["code/home.py"]
        capfd.readouterr()
        stop()
        run.log_metrics({"loss": 1.0}, step=2)
    assert "metrics of run" in capfd.readouterr().err
    with pytest.raises(UserError, match="no MLflow server answers"):
        tracking.initialise()
