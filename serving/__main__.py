"""``python -m serving``: the embedded Triton server, its models, and asking them for embeddings."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from foundry.errors import UserError, run_command
from foundry.home import home


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        return command

    up = add("up", "start the server with the models of the repository and leave it up")
    stop = add("stop", "stop the server")
    status = add("status", "say whether the server runs and what it serves (JSON)")
    embed = add("embed", "ask for the embeddings of images (JSON on the output, or --output FILE)")
    export = add("export", "write the ONNX graph of a Hugging Face export folder")
    add("install", "unpack the Triton server where it is looked for; nothing to do when it is there")

    for command in (up, stop, status, embed):
        command.add_argument("--name", default="default", help="which embedded server (default: %(default)s)")
    up.add_argument("--repository", type=Path, help="model repository (default: that of the project's home)")
    for port in ("http", "grpc", "metrics"):
        up.add_argument(f"--{port}-port", type=int, default=0, metavar="PORT", help="default: a free one")
    up.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="limit of the start (default: %(default)s)"
    )

    _add_embed_arguments(embed)

    export.add_argument("source", type=Path, metavar="EXPORT", help="folder with config.json and model.safetensors")
    export.add_argument("destination", type=Path, metavar="DESTINATION", help="new folder for model.onnx")
    export.add_argument("--opset", type=int, help="ONNX operator set (default: that of the served models)")
    return parser


def _add_embed_arguments(embed: argparse.ArgumentParser) -> None:
    embed.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="file, folder (all below it), 'pattern', or '-' for the standard input",
    )
    embed.add_argument("--from", dest="list_file", metavar="LIST", help="text file with the path of an image a line")
    embed.add_argument("--url", help="server to ask (default: the embedded one)")
    embed.add_argument("--model", help="model to ask (default: the only one served)")
    embed.add_argument("--version", type=int, help="version to ask (default: the newest served, for the whole run)")
    embed.add_argument("--patch-features", action="store_true", help="ask for the features of the patches too")
    embed.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="FILE.parquet, FILE.npy or FILE.json; the same command goes on with what a killed one left",
    )
    embed.add_argument("--batch", type=int, default=8, help="images of a request (default: %(default)s)")
    embed.add_argument("--concurrency", type=int, default=4, help="requests at once (default: %(default)s)")
    embed.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="wait so long for a server that went away (default: %(default)s)",
    )
    embed.add_argument("--allow-change", action="store_true", help="go on when another version begins to answer")
    embed.add_argument("--anew", action="store_true", help="forget what a killed run of this output left")


def _up(arguments: argparse.Namespace) -> int:
    from serving.repository import ModelRepository
    from serving.server import Ports, load_models, start_server, stop_server

    repository = ModelRepository(arguments.repository or home() / "model_repository")
    ports = Ports(arguments.http_port, arguments.grpc_port, arguments.metrics_port)
    server = start_server(repository.root, arguments.name, ports=ports, timeout=arguments.timeout)
    try:
        problems = load_models(server, repository)
        description = _describe(server)
        if problems and not description["models"]:
            raise UserError("; ".join(problems))
        server.keep()
    except BaseException:
        stop_server(arguments.name, drain=False)
        raise
    _print_json(description)
    for problem in problems:
        print(f"warning: {problem}", file=sys.stderr)
    if not description["models"] and not problems:
        print(f"note: {repository.root} holds no model yet; a deployment puts some there", file=sys.stderr)
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    from serving.server import stop_server

    stopped = stop_server(arguments.name)
    print(f"server '{arguments.name}' {'stopped' if stopped else 'does not run'}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from serving.server import find_server

    server = find_server(arguments.name)
    _print_json(_describe(server) if server else {"name": arguments.name, "running": False})
    return 0


def _describe(server: Any) -> dict[str, Any]:
    models: dict[str, list[int]] = {}
    for row in server.control().index():
        if row.get("state") == "READY":
            models.setdefault(row["name"], []).append(int(row["version"]))
    return {
        "name": server.name,
        "running": True,
        "url": server.url,
        "grpc": f"127.0.0.1:{server.grpc_port}",
        "metrics": server.metrics_url,
        "process": int(server.process.partition(":")[0]),
        "started": server.started,
        "repository": server.repository,
        "log": server.log,
        "models": {name: sorted(versions) for name, versions in sorted(models.items())},
    }


def _embed(arguments: argparse.Namespace) -> int:
    from serving.image_paths import find_images

    url, model = arguments.url, arguments.model
    if url is None:
        url, model = _embedded(arguments.name, model)
    elif model is None:
        raise UserError(f"{url}: say which of its models to ask: --model NAME")
    images = find_images(arguments.images, arguments.list_file)
    from serving.bulk import BulkOptions, embed_files

    names = ("batch", "concurrency", "patience", "version", "patch_features", "allow_change")
    options = BulkOptions(**{name: getattr(arguments, name) for name in names})
    return embed_files(images, url, model, options, arguments.output, anew=arguments.anew)


def _embedded(name: str, model: str | None) -> tuple[str, str]:
    """(address, model) of the embedded server's only model, or of ``model``."""
    from serving.repository import CANDIDATE
    from serving.server import find_server

    server = find_server(name)
    if server is None:
        raise UserError(f"no embedded server '{name}' runs; start one (python -m serving up) or name one by --url")
    if model is not None:
        return server.url, model
    names = sorted({row["name"] for row in server.control().index() if row.get("state") == "READY"})
    names = [found for found in names if not found.endswith(CANDIDATE)]
    if len(names) != 1:
        raise UserError(
            f"server '{name}' serves {', '.join(names)}; say which to ask: --model NAME"
            if names
            else f"server '{name}' serves no model; deploy one (make run) and start it again"
        )
    return server.url, names[0]


def _export(arguments: argparse.Namespace) -> int:
    import dataclasses

    from serving.export import OPSET, export_onnx

    export = export_onnx(arguments.source, arguments.destination, arguments.opset or OPSET)
    _print_json(dataclasses.asdict(export))
    return 0


def _install(arguments: argparse.Namespace) -> int:
    from serving.installation import find_installation, install_triton

    print(f"Triton server in {install_triton()}")
    print(f"serving environment in {find_installation().environment}")
    return 0


def _print_json(value: Any, indent: int | None = 2) -> None:
    print(json.dumps(value, indent=indent))


def main(argv: list[str]) -> int:
    """Run one command."""
    arguments = _parser().parse_args(argv)
    return {"up": _up, "stop": _stop, "status": _status, "embed": _embed, "export": _export, "install": _install}[
        arguments.command
    ](arguments)


if __name__ == "__main__":
    sys.exit(run_command(main))
