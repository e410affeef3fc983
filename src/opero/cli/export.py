"""`opero export`: a dashboard for Grafana and alerting rules for Prometheus, made from the policies."""

from __future__ import annotations

import json
from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opero.cli.exits import OK, UsageError
from opero.cli.loading import load_configuration
from opero.cli.options import Config, Environment, Json  # noqa: TC001  # typer reads the annotations
from opero.cli.terminal import print_json, say
from opero.errors import nearest

if TYPE_CHECKING:
    from opero.config.configuration import Configuration

WHAT = ("grafana", "alerts")


def export_command(
    what: Annotated[
        str, typer.Argument(metavar="|".join(WHAT), help="What to make.", autocompletion=lambda: list(WHAT))
    ],
    env: Environment = None,
    config: Config = None,
    slo: Annotated[float, typer.Option("--slo", metavar="PERCENT", help="How many calls should succeed.")] = 99.9,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The file to write. Default: print to stdout.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Make a dashboard or alerting rules from the policies.

    They use the metrics that OPERO_METRICS=prometheus exports. With --output, --json prints the path of the written
    file, else the rules as JSON.

    \b
    opero export grafana -o dashboards/opero.json
    opero export alerts --env production --slo 99.5 -o rules/opero.yaml
    """
    if what not in WHAT:
        raise UsageError(f"opero export {what}: unknown{nearest(what, WHAT)}")
    if not 0 < slo < 100:
        raise UsageError(f"--slo {slo:g} is invalid: give the percentage of calls that should succeed, such as 99.9")
    configuration = load_configuration(config, env)
    made = _made(what, configuration, slo)
    if output is None and as_json:
        print_json(made)
        return OK
    text = _text(what, made, configuration)
    if output is None:
        print(text, end="")
        return OK
    output.write_text(text, "utf-8")
    if as_json:
        print_json({"written": str(output)})
    else:
        say(f"wrote {output}")
    return OK


def _made(what: str, configuration: Configuration, slo: float) -> dict[str, Any]:
    if what == "grafana":
        from opero.integrations.grafana import dashboard

        return dashboard(configuration.policies, slo=slo, environment=configuration.environment)
    from opero.integrations.alerts import alerts

    return alerts(configuration.policies, slo=slo)


def _text(what: str, made: dict[str, Any], configuration: Configuration) -> str:
    if what == "grafana":
        return json.dumps(made, indent=2, ensure_ascii=False) + "\n"
    import yaml

    rules = yaml.safe_dump(made, sort_keys=False, allow_unicode=True, width=110)
    return f"# Made by `opero export alerts` from environment {configuration.environment}.\n{rules}"
