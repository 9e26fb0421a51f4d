"""The `embedcomp` command. Each command imports what it needs when it runs.

Commands read their settings first, which takes no torch, and import the rest only when these are
right: a mistake is told at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from embedcomp.cli import (
    bench,
    build,
    calibrate,
    compare,
    compress,
    deploy,
    evaluate,
    frontier,
    load,
    log,
    measure,
    recompress,
    serve,
    shard,
    submit,
    train,
    verify,
)
from embedcomp.errors import EmbedcompError
from embedcomp.support.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Compress click-through-rate models, prove that quality held, and serve them.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Options of `embedcomp` itself, before the name of a command."""


app.add_typer(log.app, name="log", help="Make and look at click logs.")
app.command()(train.train)
app.command()(compress.compress)
app.command()(frontier.frontier)
app.command()(recompress.recompress)
app.command()(compare.compare)
app.command()(measure.measure)
app.command()(evaluate.evaluate)
app.command()(evaluate.inspect)
app.command()(verify.verify)
app.command()(bench.bench)
app.command()(build.build)
app.command()(calibrate.calibrate)
app.command()(shard.cut)
app.command()(shard.shard)
app.command()(serve.serve)
app.command()(serve.predict)
app.command()(load.load)
app.add_typer(deploy.app, name="deploy", help="Serve an artifact by shards and fronts on Ray.")
app.command()(submit.submit)


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    try:
        app()
    except EmbedcompError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
