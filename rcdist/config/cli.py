"""Settings from a YAML file and the command line: read_config for a run, parse_cli for the arguments of any job."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource

from rcdist.config.job import JobConfig
from rcdist.config.section import check_path
from rcdist.config.validation import is_section, nearest_key, to_config_error
from rcdist.errors import ConfigError
from rcdist.exits import Shown

S = TypeVar("S", bound=BaseModel)


def read_config(argv: Sequence[str], prog: str, description: str = "", presets: Path | None = None) -> JobConfig:
    """Read the settings of a pre-training run; see parse_cli."""
    return parse_cli(JobConfig, argv, prog=prog, description=description, presets=presets)


def parse_cli(
    settings: type[S], argv: Sequence[str], *, prog: str, description: str = "", presets: Path | None = None
) -> S:
    """Read settings: the command line over the file of `--config` over the defaults.

    `--section.key VALUE` sets one key. A list or a map is written as YAML or JSON (`'{c: 0.5}'`), a list also by
    repeating the key; `None` or `null` is None. A map given on the command line replaces the map of the file.
    `--config` takes a file, or the name of a preset. `--show-config` prints the resolved settings as
    YAML, which `--config` reads back to the same settings, and exits with 0, as `--help` does.

    Args:
        settings: pydantic model; every field has a docstring, which is its help text.
        argv: arguments without the program's name.
        prog: program's name in the help text.
        description: first paragraph of the help text.
        presets: folder in which `--config small` finds small.yaml. None: there are no presets.

    Raises:
        ConfigError: an unknown key, a value that is mistyped or out of range, or a file that cannot be read.
    """
    parser = _Parser(
        prog=prog,
        description=description or settings.__doc__,
        usage="%(prog)s [--config FILE] [--show-config] [--section.key VALUE ...]",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=118),
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file, or the name of a preset")
    parser.add_argument("--show-config", action="store_true", help="print the resolved settings as YAML and stop")
    # The source needs the model's fields only: a plain model keeps the environment out of the settings.
    CliSettingsSource(cast(type[BaseSettings], settings), root_parser=parser, cli_avoid_json=True)
    given, unknown = parser.parse_known_args(list(argv))
    if unknown:
        name, _, value = unknown[0].removeprefix("--").partition("=")
        value = value or next((text for text in unknown[1:2] if not text.startswith("--")), "")
        raise nearest_key(settings, name, value, "on the command line")
    values = vars(given)
    file, show = values.pop("config"), values.pop("show_config")
    merged = read_yaml(file, presets) if file else {}
    for key in sorted(values, key=lambda key: key.count(".")):
        _place(settings, merged, key, values[key])
    resolved = config_from_dict(merged, settings, source=f"in {file}" if file else "on the command line")
    if show:
        print(dump_config(resolved), end="")
        parser.exit()
    return resolved


def config_from_dict(data: dict[str, Any], settings: type[S] = JobConfig, source: str = "in the settings") -> S:  # type: ignore[assignment]
    """Validate nested settings, as a checkpoint or a YAML file holds them.

    Raises:
        ConfigError: names the first wrong key by its dotted path.
    """
    try:
        return settings.model_validate(data)
    except ValidationError as error:
        problem = to_config_error(error, settings, data, source)
    raise problem


def dump_config(config: BaseModel | Mapping[str, Any]) -> str:
    """Return the settings as YAML in the order of their declaration."""
    tree = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=118)
    if any(line_end in text for line_end in "\x85\u2028\u2029"):  # which do not read back unless they are escaped
        text = yaml.safe_dump(tree, sort_keys=False, width=118)
    return text


def read_yaml(name: str, presets: Path | None = None) -> dict[str, Any]:
    """Read the YAML map of a file, or of one of the presets when `name` is no file.

    Raises:
        ConfigError: no such file, not YAML (with the line), a key given twice, or no map.
    """
    known = {} if presets is None else {path.stem: path for path in sorted(presets.glob("*.yaml"))}
    try:
        path = Path(check_path(name)).expanduser()
    except ValueError as error:
        raise ConfigError("config", name[:80], str(error), "Give a YAML file") from None
    path = path if path.is_file() else known.get(name, path)
    if not path.is_file():
        remedy = f"Give a YAML file or a preset ({', '.join(known)})" if known else "Give a YAML file"
        raise ConfigError("config", name, "there is no such file", remedy)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError("config", name, f"line {line}: {error.problem}", "Correct the YAML of that line") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # a ValueError: of no date, no UTF-8
        raise ConfigError("config", name, f"cannot be read: {error}", "Give a readable YAML file in UTF-8") from None
    if not isinstance(data, dict | None):
        raise ConfigError("config", name, "holds no map of settings", "Write e.g. train: {steps: 100}")
    return data or {}


class _Parser(argparse.ArgumentParser):
    """Say what is wrong as a ConfigError instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError("", None, message, f"See {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise Shown(status)


class _Loader(yaml.SafeLoader):
    """Refuse a key that stands twice, where YAML would silently keep the last, and one that is no text.

    Keys that `<<` merges in are not written here: they may stand twice. 5e8 is a number, as in YAML 1.2.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            problem = f"key {key!r} stands twice" if isinstance(key, str) else f"key {key!r} is no text: quote it"
            if not isinstance(key, str) or key in seen:
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _place(settings: type[BaseModel], data: dict[str, Any], key: str, raw: str | list[str]) -> None:
    """Put the value of one command-line key into the nested settings."""
    *sections, last = key.split(".")
    model = settings
    for section in sections:
        model = cast(type[BaseModel], model.model_fields[section].annotation)
        if not isinstance(data.setdefault(section, {}), dict):
            raise ConfigError(section, data[section], "is a section of keys", f"Write {section}: {{{last}: ...}}")
        data = data[section]
    annotation = model.model_fields[last].annotation
    texts = raw if isinstance(raw, list) else [raw]
    is_list = getattr(annotation, "__origin__", None) is list
    if is_list and (len(texts) > 1 or not texts[0].startswith("[")):
        data[last] = texts
        return
    value = _parse_value(key, texts[-1], annotation)
    if is_section(annotation) and isinstance(value, dict):
        value = {**data.get(last, {}), **value}
    data[last] = value


def _parse_value(key: str, text: str, annotation: Any) -> Any:
    if annotation is str:
        return text
    if text in ("None", "null"):
        return None
    if annotation == str | None or not text.startswith(("{", "[")):
        return text
    try:
        return yaml.load(text, _Loader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(key, text, f"is not YAML: {problem}", f"Write e.g. --{key} '{{c: 0.5}}'") from None
