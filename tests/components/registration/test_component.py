import json


def test_the_kfp_faces_call_the_step(registered, tmp_path):
    """The functions that a pod runs, with KFP's own artifact classes."""
    from kfp.dsl import Artifact, Dataset, Metrics, Model

    from components.registration.component import register, resolve_champions

    inputs = registered[0]
    given = {"students": Model, "report": Artifact, "dataset": Dataset, "refined": Model}
    artifacts = {name: kind(uri=inputs[name]) for name, kind in given.items()}
    registration, metrics = Artifact(uri=str(tmp_path / "registration")), Metrics(uri=str(tmp_path / "metrics"))
    config = {"prefix": "shared", "golden_images": 8.0}  # KFP passes whole numbers as doubles
    register.python_func(config=config, **artifacts, registration=registration, metrics=metrics)
    document = json.loads((tmp_path / "registration" / "registration.json").read_text())
    assert {name: row["version"] for name, row in document["students"].items()} == {"convnext": "1", "vit": "1"}
    assert registration.metadata["step"] == "registration" and not registration.metadata["reused"]
    assert metrics.metadata["students/vit/parameters"] == document["students"]["vit"]["parameters"]
    assert resolve_champions.python_func(config=config, students=artifacts["students"]) == "{}"
