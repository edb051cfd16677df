"""The command line. Whatever takes time to import is imported inside the command that needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from limbeck import __version__
from limbeck.errors import ConfigError, LimbeckError
from limbeck.ledger_commands import ledger

if TYPE_CHECKING:
    from limbeck.config import MatrixConfig, PilotConfig, PilotSettings
    from limbeck.data import Data
    from limbeck.pilots import Forecast, MatrixForecast, Watcher

Plan = TypeVar("Plan", bound="PilotSettings")
_DEBUG = "limbeck.debug"
_HINT = "limbeck.hint"


class _Commands(click.Group):
    """A group of commands that tells a user's error from one of ours.

    An error of the user's is one sentence and exit code 2; an interruption is exit code 130. Anything else is a defect,
    and keeps its traceback.
    """

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (LimbeckError, OSError) as error:
            if ctx.meta.get(_DEBUG) or isinstance(error, BrokenPipeError):
                raise
            click.secho(f"error: {error}", fg="red", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo(f"\nstopped. {ctx.meta.get(_HINT, '')}".rstrip(), err=True)
            ctx.exit(130)


def _set_debug(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_DEBUG] = True


def _debug(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option --debug, before or after the name of the command."""
    text = "Show the traceback of an error."
    return click.option("--debug", is_flag=True, expose_value=False, callback=_set_debug, help=text)(command)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="limbeck", message="%(prog)s %(version)s")
@_debug
def main() -> None:
    """Distil small models that can be trusted in their worst case."""


main.add_command(ledger)


@main.command()
@click.argument("config", metavar="CONFIG")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="The run folder, in place of the configuration's."
)
@click.option(
    "--models", type=click.Path(path_type=Path), help="A Python file of your own models, terms and weightings."
)
@click.option(
    "--resume/--fresh", default=True, help="Go on with what the run folder holds (default), or empty it first."
)
@click.option("--seeds", type=click.IntRange(min=1), help="How many of the configuration's seeds to run.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes that train at once; by default one a core where there is enough to do. The result is the same.",
)
@click.option(
    "--backend",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Where cells run: this machine (default), or a Ray cluster whose nodes share the run folder.",
)
@click.option("--address", help="Of the Ray cluster, such as HOST:6379 or auto; without it one is started here.")
@click.option(
    "--metrics",
    multiple=True,
    type=click.Choice(["csv", "tensorboard", "mlflow"]),
    help="Also write each epoch's metrics there, under RUN/metrics. Several times for several.",
)
@click.option("--audit", "audited", is_flag=True, help="Audit teachers and labels first; the report then shows it.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option("--dry-run", is_flag=True, help="Only forecast what it would cost, as `limbeck estimate` does.")
@click.option("--open", "open_report", is_flag=True, help="Open the report in a browser.")
@_debug
@click.pass_context
def pilot(
    ctx: click.Context,
    config: str,
    output: Path | None,
    models: Path | None,
    resume: bool,
    seeds: int | None,
    workers: int | None,
    backend: str,
    address: str | None,
    metrics: tuple[str, ...],
    audited: bool,
    quiet: bool,
    dry_run: bool,
    open_report: bool,
) -> None:
    """Run the recipes of CONFIG with each seed, compare them, and write a report.

    CONFIG is a YAML or JSON file, or example:NAME for one that comes with limbeck (example:adult,
    example:digits_shortcut). One with several data sets or students is a pilot for each pair of them.
    """
    from limbeck.config import load_plan

    # Before torch is imported, so that a mistyped key is told at once.
    settings = load_plan(config)
    settings = _with_seeds(settings, seeds)
    if dry_run:
        click.echo(str(_forecast(settings, models)))
        return
    ctx.meta[_HINT] = "What is finished is kept: the same command goes on from there."
    from limbeck.pilots import Lines, Quiet, run_pilot

    if address is not None and backend != "ray":
        raise ConfigError(f"--address {address} is that of a Ray cluster: add --backend ray")
    cluster = (address or "local") if backend == "ray" else None
    progress: Watcher = Quiet() if quiet else Lines()
    if metrics:
        from limbeck.integrations import MetricsWatcher

        progress = MetricsWatcher(progress, metrics, (output or settings.output_folder) / "metrics")
    audits = _audits(settings, models, quiet) if audited else {}
    result = run_pilot(
        settings, output=output, models=models, resume=resume, progress=progress, workers=workers, cluster=cluster
    )
    for inside, found in audits.items():
        from limbeck.report.command import write_report
        from limbeck.report.evidence import save_audits

        folder = (output or settings.output_folder) / inside
        save_audits(found, folder)
        write_report(folder)
    click.secho(result.verdict, bold=True)
    click.echo()
    click.echo(result.table())
    click.echo()
    click.echo(f"report: {result.report_path}" if result.report_path else f"results: {result.folder}")
    if open_report and result.report_path:
        click.launch(str(result.report_path))


@main.command()
@click.argument("config", metavar="CONFIG")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="The run folder, in place of the configuration's."
)
@click.option("--models", type=click.Path(path_type=Path), help="A Python file of your own terms and weightings.")
@click.option("--resume/--fresh", default=True, help="Keep what the run folder holds (default), or empty it first.")
@click.option("--seeds", type=click.IntRange(min=1), help="How many of the configuration's seeds to run.")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes that train at once; by default as many as torch has threads (on Linux).",
)
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option("--open", "open_report", is_flag=True, help="Open the report in a browser.")
@_debug
def probe(
    config: str,
    output: Path | None,
    models: Path | None,
    resume: bool,
    seeds: int | None,
    workers: int | None,
    quiet: bool,
    open_report: bool,
) -> None:
    """Run the recipes of CONFIG as probes: small students on stored features, all trained together in seconds.

    CONFIG is one of `limbeck pilot` whose samples are vectors and whose student is linear or a small MLP; the run
    folder and the report are a pilot's, with pictures of what averaging labels does to these features.
    """
    from limbeck.config import load_config

    settings = _with_seeds(load_config(config), seeds)
    from limbeck.pilots import Lines, Quiet
    from limbeck.probes.run import run_probes

    result = run_probes(
        settings,
        output=output,
        models=models,
        resume=resume,
        progress=Quiet() if quiet else Lines(),
        workers=workers,
        say=None if quiet else lambda text: click.echo(text, err=True),
    )
    click.secho(result.verdict, bold=True)
    click.echo()
    click.echo(result.table())
    click.echo()
    click.echo(f"report: {result.report_path}" if result.report_path else f"results: {result.folder}")
    if open_report and result.report_path:
        click.launch(str(result.report_path))


def _audits(config: PilotConfig | MatrixConfig, models: Path | None, quiet: bool) -> dict[Path, dict[str | None, Any]]:
    """The audits of each pilot by its folder inside the run's; those of a data set are made once."""
    from limbeck.audits.configured import audit_config
    from limbeck.config import MatrixConfig

    def say(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    if not isinstance(config, MatrixConfig):
        return {Path(): dict(audit_config(config, models=models, say=say))}
    made: dict[str | None, dict[str | None, Any]] = {}
    found = {}
    for place, own in config.pilots().items():
        if place.data not in made:
            made[place.data] = dict(audit_config(own, models=models, say=say))
        found[place.path] = made[place.data]
    return found


def _forecast(config: PilotConfig | MatrixConfig, models: Path | None) -> Forecast | MatrixForecast:
    from limbeck.config import MatrixConfig
    from limbeck.pilots import estimate, estimate_matrix, plan

    if isinstance(config, MatrixConfig):
        return estimate_matrix(config, models)
    data, arms = plan(config, models)
    search = None if config.search is None else config.search.built()
    return estimate(data, arms, len(config.seeds), search)


@main.command()
@click.argument("config", metavar="CONFIG")
@click.option("--teacher", help="Only this one of the configuration's teachers.")
@click.option(
    "--protect", multiple=True, metavar="NAME[@SHARE]", help="A class or group not corrected beyond SHARE (0)."
)
@click.option("--models", type=click.Path(path_type=Path), help="The Python file of your own models.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of folds and intervals (default 0).")
@click.option("--trial/--no-trial", default=True, help="Whether recipes are tried for the advice (default: tried).")
@click.option("--save", is_flag=True, help="Keep it in the run folder: the pilot's report then shows it.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="The run folder, in place of the configuration's."
)
@click.option("--json", "as_json", is_flag=True, help="Plain JSON in place of text.")
@_debug
def audit(
    config: str,
    teacher: str | None,
    protect: tuple[str, ...],
    models: Path | None,
    seed: int,
    trial: bool,
    save: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Say who is wrong, the teacher or the labels of CONFIG, what a copy could reach, and which recipe fits.

    Looks at training and validation samples, never at test. A teacher that CONFIG trains is trained first.
    """
    if output is not None and not save:
        raise ConfigError(f"--output {output} says where an audit is kept: add --save")
    import json

    from limbeck.config import load_config

    settings, protected = load_config(config), dict(map(_protected, protect))
    from limbeck.audits.configured import audit_config

    found = audit_config(
        settings,
        models=models,
        teacher=teacher,
        protected=protected,
        seed=seed,
        trial=trial,
        say=lambda text: click.echo(text, err=True),
    )
    if save:
        from limbeck.report.evidence import save_audits

        click.echo(f"saved: {save_audits(found, output or settings.output_folder)}", err=True)
    if as_json:
        click.echo(json.dumps({key or "labels": result.to_dict() for key, result in found.items()}, indent=1))
        return
    for key, result in found.items():
        if key is not None:
            click.secho(f"teacher {key}", bold=True)
        click.echo(result.text())
        click.echo()


def _protected(text: str) -> tuple[str, float]:
    """A name and the share of its labels that may be corrected; 0 where none is said."""
    name, sign, share = text.rpartition("@")
    if not sign:
        return text, 0.0
    try:
        return name, float(share)
    except ValueError:
        raise ConfigError(f"--protect {text}: {share!r} is not a share, expected NAME or NAME@.1") from None


@main.command()
@click.argument("config", metavar="CONFIG")
@click.option("--models", type=click.Path(path_type=Path), help="The Python file of your own models.")
@click.option("--json", "as_json", is_flag=True, help="Plain JSON in place of a table.")
@_debug
def estimate(config: str, models: Path | None, as_json: bool) -> None:
    """Forecast a pilot from a few real steps: parameters, memory, stored outputs, the teacher's share, time."""
    import json

    from limbeck.config import load_plan

    found = _forecast(load_plan(config), models)
    click.echo(json.dumps(found.to_dict(), indent=1) if as_json else str(found))


def _with_seeds(config: Plan, wanted: int | None) -> Plan:
    """The first seeds of the configuration; where it has fewer, the next whole numbers are added."""
    if wanted is None:
        return config
    chosen = list(config.seeds[:wanted])
    while len(chosen) < wanted:
        chosen.append(max(chosen) + 1)
    return config.model_copy(update={"seeds": tuple(chosen)})


@main.command()
@click.argument("student", metavar="RUN_OR_STUDENT", type=click.Path(exists=True, path_type=Path))
@click.argument("data", metavar="[DATA]", required=False)
@click.option("--models", type=click.Path(path_type=Path), help="The Python file of your own models.")
@click.option(
    "--part", type=click.Choice(["test", "validation", "train"]), default="test", help="Which part (default test)."
)
@click.option("--json", "as_json", is_flag=True, help="Plain JSON in place of tables.")
@_debug
def evaluate(student: Path, data: str | None, models: Path | None, part: str, as_json: bool) -> None:
    """Evaluate the students of a run, or one of its model files, by group.

    RUN_OR_STUDENT is a run folder, or a .safetensors file in one. DATA is a configuration, or a CSV or Parquet table
    with the columns of the run's own; without it the run's own data are taken.
    """
    import json

    found, failed = _evaluations(student, data, models, part)
    if as_json:
        click.echo(json.dumps({name: result.to_dict() for name, result in found.items()}, indent=1))
    else:
        for name, result in found.items():
            click.secho(name, bold=True)
            click.echo(str(result))
            click.echo()
    if failed:
        raise ConfigError("\n".join(failed))


def _evaluations(student: Path, source: str | None, models: Path | None, part: str) -> tuple[dict[str, Any], list[str]]:
    """The evaluation of each student, by the name of its file, and why there is none of others."""
    from limbeck.config import load_config

    files, own = _student_files(student)
    table = source if source is not None and source.lower().endswith(_TABLES) else None
    wanted = own if source is None or table is not None else source
    if wanted is None:
        raise ConfigError(f"{student} is in no run folder, so its data are not known: name a configuration as well")
    config = load_config(wanted)
    from limbeck.build import build_data, table_like
    from limbeck.models import load_user_file

    user = load_user_file(models) if models else None
    data = build_data(config)
    if table is None:
        counts = None if data.train.groups is None else data.train.groups.counts()
        judged = getattr(data, part)
    else:
        counts, judged = None, table_like(config, data, table)
    found: dict[str, Any] = {}
    failed: list[str] = []
    for file in files:
        # One student that cannot be rebuilt does not keep the others from being judged.
        try:
            found[file.stem] = _evaluation(file, judged, counts, user)
        except LimbeckError as error:
            failed.append(str(error))
    return found, failed


_TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".pq")


def _evaluation(file: Path, data: Data, training_counts: Any, user: dict[str, object] | None) -> Any:
    from limbeck.evaluation import evaluate
    from limbeck.models import load_model

    saved = load_model(file, inputs_shape=data.sample_shape, user=user)
    if saved.classes != data.classes:
        raise ConfigError(
            f"{file} tells {', '.join(saved.classes)} apart, and the data have the classes {', '.join(data.classes)}: "
            "give the data it was trained for"
        )
    return evaluate(saved.model, data, training_counts=training_counts)


@main.command()
@click.argument("student", metavar="RUN_OR_STUDENT", type=click.Path(exists=True, path_type=Path))
@click.option("--models", type=click.Path(path_type=Path), help="The Python file of your own models.")
@click.option("--json", "as_json", is_flag=True, help="Plain JSON in place of text.")
@_debug
def cost(student: Path, models: Path | None, as_json: bool) -> None:
    """Measure what the models of a run cost here: parameters, size, latency, energy, and students against teachers.

    One file a model, that of its first seed; on one thread, with the run's own test samples.
    """
    import json

    files, own = _student_files(student)
    if own is None:
        raise ConfigError(f"{student} is in no run folder, so its data are not known")
    from limbeck.build import build_data
    from limbeck.config import load_config
    from limbeck.evaluation import Cost, measure_cost
    from limbeck.models import load_model, load_user_file

    user = load_user_file(models) if models else None
    data = build_data(load_config(own))
    found: dict[str, Cost] = {}
    for file in files:
        name = file.stem.rpartition("-seed")[0] or file.stem
        if name not in found:
            saved = load_model(file, inputs_shape=data.sample_shape, user=user)
            found[name] = measure_cost(saved.model, data.test)
    teachers = [name for name in found if name.startswith("teacher-")]
    against = {
        name: {teacher: found[name].against(found[teacher]) for teacher in teachers}
        for name in found
        if name not in teachers
    }
    if as_json:
        plain = {name: entry.to_dict() | {"against": against.get(name, {})} for name, entry in found.items()}
        click.echo(json.dumps(plain, indent=1))
        return
    for name, entry in found.items():
        click.secho(name, bold=True)
        click.echo(str(entry))
        for teacher, ratios in against.get(name, {}).items():
            said = ", ".join(f"{what} {ratio:.3g}" for what, ratio in ratios.items() if ratio is not None)
            click.echo(f"{teacher} over it: {said}")
        click.echo()


def _student_files(student: Path) -> tuple[list[Path], Path | None]:
    """The model files that are meant, and the configuration of their run where there is one."""
    folder = student if student.is_dir() else student.parent.parent
    files = sorted((student / "models").glob("*.safetensors")) if student.is_dir() else [student]
    if not files:
        raise ConfigError(f"{student} holds no students: expected a run folder with models/*.safetensors")
    config = folder / "config.yaml"
    return files, config if config.is_file() else None


@main.command()
@click.argument("source", metavar="CONFIG_OR_DATA")
@click.option("--model", required=True, help="A model file of a run (.safetensors), timm/NAME, or FILE.NAME of yours.")
@click.option("--weights", type=click.Path(path_type=Path), help="Its weights, a .safetensors file, for a name.")
@click.option("--models", type=click.Path(path_type=Path), help="The Python file of your own models.")
@click.option("--layer", help="Where they are: a layer, or 'output'; by default what enters the last linear layer.")
@click.option("--batch-size", type=click.IntRange(min=1), default=256, help="Samples a call (default 256).")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), required=True, help="The file to write, .safetensors or .npz."
)
@_debug
def features(
    source: str,
    model: str,
    weights: Path | None,
    models: Path | None,
    layer: str | None,
    batch_size: int,
    output: Path,
) -> None:
    """Extract and store frozen features, so that probes and heads train in seconds.

    CONFIG_OR_DATA is a configuration, of which the data are taken, or an .npz file of arrays x and y. An .npz written
    is data for a configuration; a .safetensors file is for `limbeck.features.load`.
    """
    from limbeck.features import ENDINGS, extract, save

    if output.suffix not in ENDINGS:
        raise ConfigError(f"{output}: features are written as {' or '.join(ENDINGS)}")
    data = _data_of(source)
    module = _model_of(model, weights, models, data)
    found = extract(module, data, layer, batch_size=batch_size)
    save(found, output, model=model, layer=layer, data=data.fingerprint())
    click.echo(f"wrote {output}: {len(found):,} samples of {found.x.shape[1]:,} features")
    if output.suffix == ".npz":
        attributes = ", ".join(f"{name}: attribute.{name}" for name in found.attributes)
        groups = "" if found.groups is None else f", groups: [{', '.join(found.groups.columns)}]"
        keys = f"label: y, id: id, split: split, classes: classes, attributes: {{{attributes}}}{groups}"
        click.echo(f"in a configuration: data: {{npz: {output.name}, {keys}}}")


def _data_of(source: str) -> Data:
    if source.lower().endswith(".npz"):
        from limbeck.data import Data

        return Data.from_npz(source)
    from limbeck.build import build_data
    from limbeck.config import load_config

    return build_data(load_config(source))


def _model_of(model: str, weights: Path | None, models: Path | None, data: Data) -> Any:
    from limbeck.models import build, load_model, load_user_file, load_weights

    user = load_user_file(models) if models else None
    if model.endswith(".safetensors"):
        return load_model(model, inputs_shape=data.sample_shape, user=user).model
    built = build(model, inputs_shape=data.sample_shape, classes=data.num_classes, user=user)
    if weights is not None:
        load_weights(built, weights)
    return built.eval()


@main.command()
@click.argument("run", metavar="RUN", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--format", "kind", type=click.Choice(["html", "md", "json", "pdf"]), help="By default by the ending of --output."
)
@click.option("--lang", "language", default="en", help="Of the words: en (default) or ja.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="The file to write (default in RUN)."
)
@click.option("--models", type=click.Path(path_type=Path), help="The Python file of your own models.")
@click.option("--refresh", is_flag=True, help="Measure cost, corrections and features again from what RUN holds.")
@click.option("--open", "open_report", is_flag=True, help="Open it.")
@_debug
def report(
    run: Path,
    kind: str | None,
    language: str,
    output: Path | None,
    models: Path | None,
    refresh: bool,
    open_report: bool,
) -> None:
    """Write the report of a finished pilot again: in another language, as Markdown, JSON or PDF.

    Cost, corrections and features were measured when the pilot ended. Where RUN is older than that, or with --refresh,
    they are measured now, from the models, ledgers and data on disk. Of several data sets or students: the report of
    each, and the overview.
    """
    from limbeck.pilots.matrix import pilot_folders, write_overview
    from limbeck.report.command import write_report

    def write(folder: Path) -> Path:
        return write_report(
            folder,
            kind=kind,
            language=language,
            output=output,
            models=models,
            refresh=refresh,
            say=lambda text: click.echo(text, err=True),
        )

    folders = pilot_folders(run)
    if folders and output is not None:
        raise ConfigError(f"{run} holds {len(folders)} pilots, and --output is one file: name the folder of one")
    pages = [write(folder) for folder in folders]
    path = write_overview(run, language=language, kind=kind or "html") if pages else write(run)
    for page in pages:
        click.echo(str(page))
    click.echo(str(path))
    if open_report:
        click.launch(str(path))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Plain JSON in place of a table.")
@_debug
def recipes(as_json: bool) -> None:
    """List the recipes: what each is, whom it trusts, what it needs."""
    import json

    from limbeck.presets import describe_presets

    found = describe_presets()
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("recipe", "what it is", "trusts", "from the teacher", "labels beside training's", "classes"):
        table.add_column(title, overflow="fold")
    for row in found:
        what = f"{row['title']} ({row['paper']})" if row["paper"] else row["title"]
        table.add_row(row["name"], what, row["trusts"], row["teacher"], row["labels"], row["classes"])
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table)


_WIDTH = 160
"""Columns of a table that goes to a file or a pipe, where no terminal says how wide it is."""


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="The file to write (default NAME.yaml)."
)
@click.option("--label", help="The column or array of the classes, where the guess would be wrong.")
@click.option("--force", is_flag=True, help="Replace the file where it exists.")
@_debug
def init(data: Path, output: Path | None, label: str | None, force: bool) -> None:
    """Look at DATA and write a commented configuration to start from.

    DATA is a CSV or Parquet table, an .npz file, or a folder of images.
    """
    from limbeck.starter import starter

    name = data.resolve().name.partition(".")[0] or "data"
    target = output or Path(f"{name}.yaml")
    if target.exists() and not force:
        raise ConfigError(f"{target} exists: name another file with --output, or replace it with --force")
    found = starter(data, label=label, folder=target.resolve().parent)
    target.write_text(found.text, encoding="utf-8")
    for line in found.seen:
        click.echo(line)
    click.echo(f"\nwrote {target}. Read it, correct what is wrong, then: limbeck pilot {target}")


@main.command()
@click.argument("name")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), help="Where to (default LIMBECK_DATA or the cache)."
)
@_debug
def download(name: str, folder: Path | None) -> None:
    """Fetch the data set NAME from its official source."""
    from limbeck.data.download import download as fetch

    for path in fetch(name, folder):
        click.echo(str(path))


@main.command()
@click.argument("config", metavar="CONFIG")
@click.option(
    "--method",
    type=click.Choice(["errors", "tree", "clusters", "mixture", "disagreement"]),
    help="How, where CONFIG does not say it, or another way.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Of everything that is drawn.")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("groups.parquet"),
    help="The table to write (default groups.parquet).",
)
@click.option("--json", "as_json", is_flag=True, help="Plain JSON in place of a table.")
@_debug
def discover(config: str, method: str | None, seed: int | None, output: Path, as_json: bool) -> None:
    """Find groups in which a model fails, judge them on held-out samples, and write each sample's group.

    CONFIG is a configuration; of it the data are taken, and how groups are found where it says `groups: {discover: …}`.
    Groups that it declares decide nothing: what is found is compared with them. The table has the columns id, split,
    group and rule.
    """
    import json

    from limbeck.config import load_config
    from limbeck.config_data import Discovered

    section = load_config(config).data
    asked = section.groups if isinstance(section.groups, Discovered) else None
    if asked is None or (method is not None and method != asked.discover):
        if method is None:
            raise ConfigError(f"{config} declares its groups: say how others are to be found, with --method")
        asked = Discovered.model_validate({"discover": method})
    asked = asked if seed is None else asked.model_copy(update={"seed": seed})
    from limbeck.build import build_data
    from limbeck.build import discover as find

    declared = None if isinstance(section.groups, Discovered) else section.groups
    found = find(asked, build_data(section.model_copy(update={"groups": declared})))
    found.save(output)
    click.echo(json.dumps(found.to_dict(), indent=1) if as_json else f"{found}\nwrote {output}")


@main.command()
@_debug
def version() -> None:
    """Print the versions of limbeck and of what its results depend on."""
    import platform
    from importlib import metadata

    click.echo(f"limbeck {__version__}")
    for package in ("torch", "numpy", "scikit-learn", "pyarrow"):
        click.echo(f"{package} {metadata.version(package)}")
    click.echo(f"python {platform.python_version()}")


if __name__ == "__main__":
    main()
