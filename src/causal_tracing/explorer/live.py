"""The explorer with a model: what is typed is understood, its cost said, traced while the page looks on, looked into.

All of it runs on the worker's thread: there is one model, and its hooks would see another thread's runs.
"""

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from causal_tracing.engine.backend import Backend
from causal_tracing.engine.choose import open_backend, plain_backend
from causal_tracing.errors import InvalidOption, Note
from causal_tracing.experiments.cost import cost_of_job
from causal_tracing.experiments.repeat import keep_config
from causal_tracing.experiments.trace import measured
from causal_tracing.experiments.trace_result import Trace
from causal_tracing.explorer.asked import MOST_LETTERS, TEXTS, Asked, Deeper, require_prompts
from causal_tracing.explorer.deeper import COMPONENTS, offered, options_of, told_of
from causal_tracing.explorer.example import example_for
from causal_tracing.explorer.jobs import Job, Worker
from causal_tracing.explorer.python_lines import python_lines
from causal_tracing.explorer.shelf import folder_for, label_of
from causal_tracing.explorer.understand import check_tokens, completed, paired, read_prompts, spelled, understand
from causal_tracing.explorer.views import first_look, new_cells, whole_view
from causal_tracing.interventions.edits import Run
from causal_tracing.models.model import Model
from causal_tracing.patching.job import USUAL, plan_job
from causal_tracing.patching.job import Job as TraceJob
from causal_tracing.patching.measure import Filled
from causal_tracing.patching.options.trace import Options
from causal_tracing.prompts.pairs import Pair
from causal_tracing.report.page.text import visible
from causal_tracing.results.measurements import Measurements

AHEAD = 32  # tokens, which few prompts that are typed have
PATIENCE = 2.0  # seconds for which whoever types may be held up
TOLD = ("seconds", "worlds", "worlds_skipped", "engine", "engine_note", "spot_checks")  # of a trace's record


class Live:
    """A session with a model. `limit` is how many tokens a prompt may have, `out` where traces are kept."""

    def __init__(self, model: Model, *, out: Path, limit: int) -> None:
        self.model, self.out, self.limit = model, out, limit
        self.worker = Worker(self._ahead())
        self.plain = plain_backend(model)
        self.timed: dict[str, Backend] = {}  # backends that know already how fast this machine is, by engine
        self.example: Job | None = None

    def start(self) -> None:
        """Begins to work: an example is traced before anybody has typed."""
        self.worker.start()
        pair = example_for(self.model.tokenizer)
        if pair is not None and len(self.model.tokenizer(pair.clean)["input_ids"]) <= self.limit:
            fields = {name: getattr(pair, name) for name in TEXTS if getattr(pair, name)}
            self.example = self.worker.submit(replace(self.trace(Asked(pair=fields, options={}, tab="")), yields=True))

    def _ahead(self) -> Iterator[None]:
        """Compares the engines on prompts as long as will be typed, a component a step: then no trace waits for it."""
        anatomy, length = self.model.anatomy, min(AHEAD, self.limit, self.model.context or AHEAD)
        wanted = [] if self.model.backend is not None else [*USUAL, COMPONENTS["heads"], COMPONENTS["neurons"]]
        for component in filter(anatomy.offers, wanted):
            began = time.perf_counter()
            open_backend(self.model, [component], length=length)
            # A large model is compared when a trace needs it: whoever types would be held up at each step.
            if time.perf_counter() - began > PATIENCE:
                return
            yield

    def about(self) -> dict[str, Any]:
        """The model, what it offers, the limits, and the example."""
        model, described = self.model, self.plain.describe()
        return {
            "live": True,
            "model": model.name,
            "layers": model.num_layers,
            "dtype": model.dtype,
            "device": str(model.device),
            "context": model.context,
            "limits": {"tokens": min(self.limit, model.context or self.limit), "letters": MOST_LETTERS},
            "deeper": offered(model, described.components),
            "missed": [[name, visible(reason)] for name, reason in model.anatomy.missed],
            "example": self.example.id if self.example else None,
        }

    def tokens(self, asked: Asked) -> dict[str, Any]:
        """A pair's tokens: the model is not asked."""
        return spelled(self.model, asked, self.limit)

    def preview(self, asked: Asked) -> Callable[[], dict[str, Any]]:
        """An errand: what is understood of a pair."""
        return lambda: understand(self.model, self.plain, asked, self.limit)

    def estimate(self, asked: Asked) -> Callable[[], dict[str, Any]]:
        """An errand: what its trace will take. The first time two forwards are timed."""

        def cost() -> dict[str, Any]:
            require_prompts(asked)
            planned = self._planned(asked)
            # Backends are made anew for each pair, and each would time its own forwards.
            known = self.timed.setdefault(planned.backend.describe().engine, planned.backend)
            return cost_of_job(replace(planned, backend=known)).to_dict()

        return cost

    def trace(self, asked: Asked) -> Job:
        """A job: the trace of a pair. Raises InputError where prompts are too long, or no prompts."""
        require_prompts(asked)
        check_tokens(asked.pair, self.model, self.limit)
        key = json.dumps([dict(asked.pair), dict(asked.options)], sort_keys=True)
        about = {"label": label_of(asked.pair), "pair": dict(asked.pair), "options": dict(asked.options)}
        return Job(work=lambda job: self._trace(job, asked), about=about, tab=asked.tab, key=key)

    def deeper(self, job: Job, asked: Deeper) -> Job:
        """A job: what is inside a cell, or its layer's attention pattern."""
        if not isinstance(job.result, Trace):
            raise InvalidOption("This trace is not finished. Wait until its map is whole, then open a cell.")
        if not 0 <= asked.layer < self.model.num_layers:
            raise InvalidOption(f"There is no layer {asked.layer}: the model has 0 to {self.model.num_layers - 1}.")
        work = self._pattern if asked.kind == "pattern" else self._inside
        given = _asked(job)
        key = json.dumps(["deeper", job.key, asked.kind, asked.sender, asked.layer, asked.position])
        about = {"label": f"{asked.kind} of layer {asked.layer}", "of": job.id, "kind": asked.kind}
        return Job(work=lambda one: work(one, given, asked), about=about, tab=asked.tab, lane="deeper", key=key)

    def save(self, job: Job, name: str) -> str:
        """Keeps a trace with its page, and the file that makes it again. Raises InvalidResults, MachineError."""
        trace, folder = job.result, folder_for(self.out, name)
        trace.save(folder)
        asked = [Pair(**row) for row in trace.provenance["pairs"]]
        keep_config(folder, self.model, asked, trace.provenance["options"], write="donor")
        trace.to_html(folder / "report.html")
        return str(folder)

    def _planned(self, asked: Asked, **options: Any) -> TraceJob:
        fields = dict(asked.pair)
        if not (fields.get("answer") and fields.get("foil")):
            fields = self._with_choices(fields)
        paired(fields, self.model, asked.options.get("align", "strict"))  # says which field is wrong
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Note)  # said on the page: what is not offered, and the engine's note
            return plan_job(self.model, Pair(**fields), Options(**{**asked.options, **options}))

    def _with_choices(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The pair with the model's own first choices as answer and foil."""
        return completed(fields, read_prompts(self.model, self.plain, fields, self.limit), self.model)

    def _trace(self, job: Job, asked: Asked) -> None:
        """The trace, told while it fills; between two batches others are served."""
        planned, drawn = self._planned(asked), False

        def sink(filled: Filled) -> None:
            nonlocal drawn
            job.check()
            if not drawn:
                job.tell("map", data=first_look(filled.measurements))
                drawn = True
            job.tell("cells", **new_cells(filled.measurements, filled.new))
            self.worker.between()

        trace = Trace(_measured(planned, job, sink))
        job.result = trace
        record = trace.provenance
        job.tell(
            "view",
            **whole_view(trace.measurements),
            command=record["command"],
            python=python_lines(self.model, planned.asked[0], asked.options),
        )
        job.tell("done", **{name: record[name] for name in TOLD})

    def _inside(self, job: Job, asked: Asked, cell: Deeper) -> None:
        """What is inside a cell, told while it comes."""

        def tell(found: Measurements, *, filling: bool) -> None:
            kind, data = told_of(cell, found, filling=filling)
            job.tell(kind, **data)

        def sink(filled: Filled) -> None:
            job.check()
            tell(filled.measurements, filling=True)
            self.worker.between()

        trace = Trace(_measured(self._planned(asked, **options_of(cell)), job, sink))
        job.result = trace
        tell(trace.measurements, filling=False)
        job.tell("done", **{name: trace.provenance[name] for name in TOLD})

    def _pattern(self, job: Job, asked: Asked, cell: Deeper) -> None:
        """Where each head of a layer looks, in both runs: [run][head][token][token]."""
        planned, place = self._planned(asked), ("pattern", cell.layer)
        backend = open_backend(self.model, ["pattern"])
        pair = planned.pairs[0]
        runs = {name: Run(getattr(pair, name).tokens) for name in ("clean", "corrupt")}
        recorded = backend.record(list(runs.values()), [place])
        sides = {}
        for name, run in runs.items():
            length, found = len(run.tokens), recorded[run].activations[place]
            by_head = found.float().reshape(length, -1, length).transpose(0, 1)
            tokens = [visible(text) for text in getattr(pair, name).strings]
            sides[name] = {"tokens": tokens, "heads": by_head.double().round(decimals=3).tolist()}
        job.tell("pattern", layer=cell.layer, sides=sides)
        job.tell("done")


def _asked(job: Job) -> Asked:
    """What a trace was of: its pair with the answer and foil that were taken, and how its tokens were paired."""
    row = job.result.provenance["pairs"][0]
    options = {name: value for name, value in job.about["options"].items() if name in ("align", "metric")}
    return Asked(pair={name: value for name, value in row.items() if name not in ("id",)}, options=options, tab="")


def _measured(planned: TraceJob, job: Job, sink: Callable[[Filled], None]) -> Any:
    def progress(done: int, of: int) -> None:
        job.check()
        reached = 20 * done // max(1, of)
        if reached > told[-1]:
            told.append(reached)
            job.tell("progress", done=done, of=of)

    told = [-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)  # said on the page
        return measured(planned, progress, sink)
