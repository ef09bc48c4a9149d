"""How sites by name are spelled, on a command line and in a file: lists of them, sets by name, two lists."""

from pathlib import Path
from typing import Any

from causal_tracing.errors import InvalidOption
from causal_tracing.patching.options.spelling import is_a, list_of, one


def _sites(text: str) -> list[str]:
    return [site.strip() for site in text.split(";") if site.strip()]


SITES = one(
    lambda value: _sites(value) if isinstance(value, str) else value,
    lambda value: "; ".join(value),
    fits=list_of(str),
    form='a list of sites, such as ["z 23.4 @ last"]',
    example="Several with ; between them.",
)


def sets(text: str) -> dict[str, list[str]]:
    """name = site; site | name = site as lists by name, or those of a TOML file. Raises InvalidOption."""
    if text.endswith(".toml"):
        return _sets_of(Path(text))
    found: dict[str, list[str]] = {}
    for part in text.split("|"):
        name, equals, sites = part.partition("=")
        if not equals or name.strip() in found:
            why = "names a set twice" if equals else "has no = behind a set's name"
            raise InvalidOption(f"--sets {text!r}: {part.strip()!r} {why}. Write such as {SETS_EXAMPLE}")
        found[name.strip()] = _sites(sites)
    return found


def _sets_of(path: Path) -> dict[str, list[str]]:
    """The sets of a file: a list of sites by each name. Raises InvalidOption."""
    import tomllib  # only where there is a file: every --help loads this module

    try:
        found = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOption(f"--sets {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidOption(f"--sets {path} is no TOML: {error}.") from None
    for name, sites in found.items():
        if not list_of(str)(sites):
            raise InvalidOption(
                f'--sets {path}: {name} must be a list of sites, such as ["z 3.1 @ last"]; it is {sites!r}.'
            )
    return found


SETS_EXAMPLE = '"movers = z 23.4 @ last; z 23.5 @ last | subject = resid_post 0-9 @ subject", or a file sets.toml.'


def _sets_again(value: Any) -> str:
    return " | ".join(f"{name} = {'; '.join(sites)}" for name, sites in value.items())


SETS = one(
    lambda value: sets(value) if isinstance(value, str) else value,
    _sets_again,
    fits=lambda value: isinstance(value, dict) and all(map(list_of(str), value.values())),
    form='a table of lists of sites, such as {movers = ["z 3.1 @ last"]}',
    example=f"Such as {SETS_EXAMPLE}",
)


def interactions(text: str) -> bool | list[str] | list[list[str]]:
    """true, a; b as a list, or a; b | c; d as two."""
    if text == "true":
        return True
    lists = [_sites(part) for part in text.split("|")]
    return lists[0] if len(lists) == 1 else lists


def _interactions_again(value: Any) -> str:
    if value is True:
        return "true"
    lists = [value] if all(isinstance(each, str) for each in value) else value
    return " | ".join("; ".join(sites) for sites in lists)


INTERACTIONS = one(
    lambda value: interactions(value) if isinstance(value, str) else value,
    _interactions_again,
    fits=lambda value: (
        is_a(value, bool) or list_of(str)(value) or (isinstance(value, list) and all(map(list_of(str), value)))
    ),
    form='true, a list of sites, or two of them, such as ["each z 20-23 @ last"]',
    example='Such as true, or "each z 20-23 @ last", or "z 23.4 @ last | each z @ last".',
)

NAMED = one(
    lambda value: (
        (sets(value) if "=" in value or value.endswith(".toml") else _sites(value)) if isinstance(value, str) else value
    ),
    lambda value: _sets_again(value) if isinstance(value, dict) else "; ".join(value),
    fits=lambda value: list_of(str)(value) or (isinstance(value, dict) and all(map(list_of(str), value.values()))),
    form='a list, such as ["each z @ last"], or a table of lists',
    example='Such as "each z 20-29 @ last; mlp_out 25 @ last", or "movers = z 23.4 @ last; z 23.5 @ last".',
)
