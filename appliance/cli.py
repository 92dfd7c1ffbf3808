"""The `shammah` command: one group, and errors as one line instead of a traceback.

Exit codes: 0 done, 1 failed (the reason is one line on stderr), 2 wrong usage.
"""

from __future__ import annotations

import os
from typing import Any

import click

from appliance import __version__
from appliance.commands import (
    access,
    adapters,
    backup,
    config,
    daemon,
    doctor,
    eval,
    install,
    model,
    queue,
    storage,
    tls,
    training,
)
from appliance.commands.local import become_owner
from appliance.commands.terminal import tame
from appliance.errors import ShammahError
from appliance.home import Home


class Root(click.Group):
    """The top group; turns failures into one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ShammahError as error:
            raise click.ClickException(" ".join(error.message.split())) from error
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except OSError as error:
            raise click.ClickException(
                f"{error.filename or 'The system'}: {error.strerror or error}"
            ) from error
        except Exception as error:
            if os.environ.get("SHAMMAH_DEBUG"):
                raise
            raise click.ClickException(
                f"Unexpected {type(error).__name__}: {' '.join(str(error).split())} "
                "(this is a bug; SHAMMAH_DEBUG=1 shows where)."
            ) from error


@click.group(
    cls=Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
A first tour:
  shammah daemon                      serve on 127.0.0.1:8080; the console is at /
  shammah status                      what is served, what waits, what was learned
  shammah queue show                  the examples the next run will learn from
  shammah train --now                 learn from them now, and see the verdict
  shammah adapters list               every adapter, and which is in service
  shammah adapters rollback           put the one before back
  shammah eval                        ask the gate about the one in service
  shammah doctor                      what is wrong with the box, and what mends it

\b
Data is kept in ~/.shammah, or where SHAMMAH_HOME points.
Exit codes: 0 done, 1 failed (one line on stderr says why), 2 wrong usage.""",
)
@click.version_option(__version__, prog_name="shammah")
@click.pass_context
def cli(context: click.Context) -> None:
    """Serve a language model to your home, and let it learn from use.

    Every answer and every correction becomes an example. When enough have come together a run trains
    an adapter, the gate judges it, and if it is good the daemon switches to it.
    """
    if context.invoked_subcommand not in ("install", "uninstall"):  # whose files are for others, too
        os.umask(0o077)
        context.call_on_close(become_owner(Home.default()))


cli.add_command(daemon.daemon)
cli.add_command(training.status)
cli.add_command(training.train)
cli.add_command(adapters.adapters)
cli.add_command(eval.evaluate)
cli.add_command(queue.queue)
cli.add_command(model.model)
cli.add_command(config.config)
cli.add_command(backup.backup)
cli.add_command(backup.restore)
cli.add_command(storage.storage)
cli.add_command(doctor.doctor)
cli.add_command(access.console)
cli.add_command(access.keys)
cli.add_command(tls.tls)
cli.add_command(install.install)
cli.add_command(install.uninstall)


def main() -> None:
    """Entry point."""
    tame()
    cli(prog_name="shammah")


if __name__ == "__main__":
    main()
