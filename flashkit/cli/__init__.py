"""The `flashkit` command. Everything heavy is imported by the command that needs it.

Exit codes: 0 done; 1 the job or the platform failed, or a check found something; 2 the command line or the
configuration is wrong; 3 the app file does not import; 4 the port is taken; 5 workers do not come up; 6 an input or
output is not what the handler declares; 7 a cold start took longer than its budget; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flashkit.errors import ConfigurationError, DefinitionError, FlashkitError, InputError, JobFailed

PORT_TAKEN = "port_taken"
"""Code of the error for which `flashkit dev` exits with 4."""
UNHEALTHY = "workers_unhealthy"
EXIT_OVER_BUDGET = 7
_START_FAILED = (UNHEALTHY, "worker_start_failed", "setup_failed")
_CONTRACT_BROKEN = ("input_invalid", "output_invalid")
"""Codes of a job's error when its input or its output has not the types that the handler declares."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process with the command's code; errors show no traceback."""
    sys.exit(run_command_line(sys.argv[1:] if arguments is None else arguments))


def run_command_line(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        import click

        from flashkit.cli.commands import cli
    except ModuleNotFoundError as exc:
        return _complain(
            f"the command line needs {exc.name}, which is not installed",
            "run: pip install 'flashkit-serverless[dev]'",
        )
    try:
        code = cli.main(args=list(arguments), prog_name="flashkit", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except FlashkitError as exc:
        sys.stderr.write(exc.report.render() + "\n")
        return exit_code_for(exc)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in (
            "rich",
            "starlette",
            "uvicorn",
            "watchfiles",
        ):
            raise
        return _complain(f"this command needs {exc.name}", "run: pip install 'flashkit-serverless[dev]'")
    return code if isinstance(code, int) else 0


def exit_code_for(error: FlashkitError) -> int:
    """Return the exit code that tells scripts which family an error is of."""
    match error:
        case ConfigurationError() if error.report.code == PORT_TAKEN:
            return 4
        case ConfigurationError() | InputError():
            return 2
        case DefinitionError():
            return 3
        case _ if error.report.code in _START_FAILED:
            return 5
        case JobFailed() if error.report.code in _CONTRACT_BROKEN:
            return 6
        case _:
            return 1


def _complain(message: str, hint: str) -> int:
    sys.stderr.write(f"flashkit: {message}\n  hint: {hint}\n")
    return 2
