"""The flags that tracing commands share, in groups: which pairs, how the model is loaded, what is written and said."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from causal_tracing.cli import asked, commands
from causal_tracing.cli.flags import Group
from causal_tracing.patching.options.declare import MANY, OUTPUT, PAIR

CORRUPT = typer.Option(
    help="The corrupt prompt, with equally many tokens unless --align pairs them otherwise. None with noise; a "
    "knockout needs none.",
    rich_help_panel=PAIR,
)
ANSWER = typer.Option(
    help="What follows the clean prompt, leading space included: ' Rome'; a set as a JSON list: '[\" he\", \" his\"]'.",
    rich_help_panel=PAIR,
)
Corrupt = Annotated[str | None, CORRUPT]
Answer = Annotated[str | None, ANSWER]
Foil = Annotated[str | None, typer.Option(help="What follows the corrupt prompt; as --answer.", rich_help_panel=PAIR)]
Clean = Annotated[str | None, typer.Option("--clean", "--prompt", help="The clean prompt.", rich_help_panel=PAIR)]
SUBJECT = "A stretch of the clean prompt; names the roles of tokens."
Subject = Annotated[str | None, typer.Option(help=SUBJECT, rich_help_panel=PAIR)]
CorruptSubject = Annotated[
    str | None, typer.Option(help="The same stretch of the corrupt prompt.", rich_help_panel=PAIR)
]
OCCURRENCE = "Which of the subject's places is meant, where there are several: 0 is the first, -1 the last."
Occurrence = Annotated[int | None, typer.Option(help=OCCURRENCE, rich_help_panel=PAIR)]
Chat = Annotated[
    bool, typer.Option("--chat", help="Put the prompts through the tokenizer's chat template.", rich_help_panel=PAIR)
]
MANY_PAIRS = "Many pairs: a file (JSON, CSV, Parquet; - is stdin), or a built-in set such as facts."
Pairs = Annotated[str | None, typer.Option(help=MANY_PAIRS, rich_help_panel=MANY)]
FORMAT = (
    "Whose rows the file has, such as counterfact (default: recognised by their keys; datasets --formats lists them)."
)
Format = Annotated[str | None, typer.Option(help=FORMAT, rich_help_panel=MANY)]
CORRUPT_BY = (
    "relation: pairs without a corrupt prompt get the subject of another fact of their relation, with another answer "
    "and equally many tokens; --seed chooses it."
)
CorruptBy = Annotated[str | None, typer.Option(help=CORRUPT_BY, rich_help_panel=MANY)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a saved trace at --out.", rich_help_panel=OUTPUT)]
DRY_RUN = "Say what it would take (worlds, memory, time), and stop."
DryRun = Annotated[bool, typer.Option("--dry-run", help=DRY_RUN, rich_help_panel=OUTPUT)]
OUT = "A folder to write: the trace, its page, and the file that makes it again. A file of pairs goes on there."
Out = Annotated[Path | None, typer.Option(help=OUT, rich_help_panel=OUTPUT)]
ALL_METRICS = "With --json: every metric's effects."
AllMetrics = Annotated[bool, typer.Option("--all-metrics", help=ALL_METRICS, rich_help_panel=OUTPUT)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFlags(Group):
    """One pair by its parts, or many in a file."""

    clean: Clean = None
    corrupt: Corrupt = None
    answer: Answer = None
    foil: Foil = None
    subject: Subject = None
    corrupt_subject: CorruptSubject = None
    occurrence: Occurrence = None
    chat: Chat = False
    pairs: Pairs = None
    format: Format = None
    corrupt_by: CorruptBy = None

    def read(self) -> asked.Asked:
        """The pairs, as far as they are known without a tokenizer. Raises InputError."""
        from causal_tracing.prompts.pairs import PLAIN_FIELDS  # no help needs what pairs are made of

        parts = {name: getattr(self, name) for name in PLAIN_FIELDS}
        return asked.read(self.pairs, parts, chat=self.chat, format=self.format, corrupt_by=self.corrupt_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingFlags(Group):
    """How the model is loaded that is named beside them."""

    dtype: commands.Dtype = None
    device: commands.Device = None
    device_map: commands.DeviceMap = None
    remote: commands.Remote = False
    revision: commands.Revision = None
    trust_remote_code: commands.Trust = False

    def options(self) -> dict[str, Any]:
        """What `load` is called with."""
        return asdict(self) | {"remote": self.remote or None}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFlags(Group):
    """What becomes of a trace: what is written, what is printed, and whether it is made at all."""

    dry_run: DryRun = False
    out: Out = None
    overwrite: Overwrite = False
    as_json: commands.Json = False
    all_metrics: AllMetrics = False
