"""Facts of one subject each: ROME's known facts, CounterFact in two forms, and relations (LRE)."""

from collections.abc import Iterator

from causal_tracing.prompts.formats.fields import Fields, Row
from causal_tracing.prompts.formats.format import Format


def known_1000(row: Fields) -> Iterator[Row]:
    """ROME's facts. The prompt is not its template filled in: words of GPT-2's own prediction were added to it."""
    yield row.row(
        id=f"known-{row.name('known_id')}",
        clean=row.text("prompt"),
        answer=row.text("attribute"),
        subject=row.text("subject"),
        labels=row.rest("known_id", "prompt", "attribute", "subject", "relation_id")
        | {"relation": row.text("relation_id")},
    )


def counterfact(row: Fields) -> Iterator[Row]:
    """CounterFact as it was published: the true object against the new one."""
    asked = row.inside("requested_rewrite")
    yield row.row(
        id=f"case-{row.name('case_id')}",
        **asked.filled(asked.text("prompt"), asked.text("subject")),
        answer=asked.inside("target_true").text("str"),
        foil=asked.inside("target_new").text("str"),
        labels=row.rest("case_id") | {"relation": asked.text("relation_id")},
    )


def counterfact_tracing(row: Fields) -> Iterator[Row]:
    """CounterFact as one table, whose subject and objects begin with their space."""
    yield row.row(
        clean=row.text("prompt"),
        answer=row.text("target_true"),
        foil=row.text("target_false"),
        subject=row.text("subject").strip(),
        labels=row.rest("prompt", "target_true", "target_false", "subject", "relation", "relation_id")
        | {"relation": row.text("relation_id"), "relation_text": row.text("relation")},
    )


def relation(file: Fields) -> Iterator[Row]:
    """A relation of LRE: every sample in every template. Those of one subject share a fact."""
    name = file.text("name")
    about = file.rest("name") | (file.inside("properties").rest() if "properties" in file.values else {})
    samples = [(sample.text("subject"), sample.text("object")) for sample in file.each("samples")]
    for number, template in enumerate(file.texts("prompt_templates")):
        for count, (subject, answer) in enumerate(samples):
            yield file.row(
                id=f"{name}-{count}-{number}".replace("/", " "),
                **file.filled(template, subject),
                answer=answer,
                # Templates of one fact are no independent evidence.
                cluster=f"{name}: {subject}".replace("/", " "),
                labels=about | {"relation": name, "template": template},
            )


FORMATS = (
    Format(
        name="known_1000",
        keys=frozenset({"known_id", "subject", "attribute", "template", "prompt", "relation_id"}),
        about="known_1000.json, a list of 1,209 facts that GPT-2 XL knows",
        source="ROME, Meng et al. 2022 (arXiv 2202.05262)",
        gives="clean = prompt, answer = attribute, subject; no corrupt prompt",
        example='{"known_id": 3, "subject": "Lake Nyos", "attribute": "Cameroon", "template": "{} can be found in", '
        '"prediction": " Cameroon, in the", "prompt": "Lake Nyos can be found in", "relation_id": "P17"}',
        read=known_1000,
        bare=True,
    ),
    Format(
        name="counterfact",
        keys=frozenset({"case_id", "requested_rewrite"}),
        about="counterfact.json, a list of 21,919 facts with another object each",
        source="ROME, Meng et al. 2022 (arXiv 2202.05262)",
        gives="clean = the rewrite's prompt and subject, answer = target_true, foil = target_new; no corrupt prompt",
        example='{"case_id": 3, "pararel_idx": 7, "requested_rewrite": {"prompt": "{} can be found in", '
        '"relation_id": "P17", "target_new": {"str": "Norway", "id": "Q20"}, "target_true": {"str": "Cameroon", '
        '"id": "Q1009"}, "subject": "Lake Nyos"}, "paraphrase_prompts": [], "neighborhood_prompts": []}',
        read=counterfact,
        bare=True,
    ),
    Format(
        name="counterfact-tracing",
        keys=frozenset({"relation", "relation_id", "prompt", "target_true", "target_false", "subject"}),
        about="NeelNanda/counterfact-tracing on the hub, 21,919 rows",
        source="CounterFact as a table, Nanda 2022, after Meng et al. 2022",
        gives="clean = prompt, answer = target_true, foil = target_false, subject; no corrupt prompt",
        example='{"relation": "{} can be found in", "relation_prefix": "", "relation_suffix": " can be found in", '
        '"prompt": "Lake Nyos can be found in", "relation_id": "P17", "target_false_id": "Q20", "target_true_id": '
        '"Q1009", "target_true": " Cameroon", "target_false": " Norway", "subject": "Lake Nyos"}',
        read=counterfact_tracing,
        bare=True,
    ),
    Format(
        name="lre",
        keys=frozenset({"name", "prompt_templates", "samples"}),
        about="a relation's JSON file of LRE, 47 files",
        source="LRE, Hernandez et al. 2023 (arXiv 2308.09124)",
        gives="clean = each template with each sample's subject, answer = object; no corrupt prompt",
        example='{"name": "lake in country", "prompt_templates": ["{} can be found in"], "prompt_templates_zs": [], '
        '"properties": {"relation_type": "factual", "symmetric": false}, "samples": [{"subject": "Lake Nyos", '
        '"object": "Cameroon"}]}',
        read=relation,
        bare=True,
    ),
)
