"""Small files as version 0.1.0 wrote them, and what it said of them; made with that version's source and tests.

PYTHONPATH=<0.1.0>/src:<0.1.0>/tests python make.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from causal_tracing.documents import document
from causal_tracing.engine.check import accept

import causal_tracing as ct
from families import FAMILIES, build
from tokenizers_for_tests import words

torch.set_num_threads(1)
WORDS = words(*(f" w{n}" for n in range(96)))
PAIR = {"clean": " w11 w12 w13 w14 w15", "corrupt": " w11 w12 w43 w14 w15", "answer": " w7", "foil": " w8"}


def many() -> list[ct.Pair]:
    """Ten pairs, one of which cannot be aligned."""
    pairs = [
        ct.Pair(
            clean=f" w11 w{20 + n} w13 w14", corrupt=f" w11 w{50 + n} w13 w14", answer=" w7", foil=" w8", id=f"p{n}",
            subject=f"w{20 + n}", corrupt_subject=f"w{50 + n}", cluster="both" if n < 2 else None,
        )
        for n in range(9)
    ]  # fmt: skip
    return [*pairs, ct.Pair(clean=" w11 w20 w13", corrupt=" w11 w50", answer=" w7", foil=" w8", id="unequal")]


def arrays(trace: ct.Trace) -> dict[str, np.ndarray]:
    """Every number of its effects, and of its means where it has any."""
    maps = {"effects": trace.effects}
    maps |= {name: getattr(trace, name) for name in trace.measurements.tables[1:]}
    if trace.effects.sizes["pair"] > 1:
        maps["evidence"] = trace.evidence().cells
    return {
        f"{name} {variable}": each.values.astype("U16") if each.dtype.kind in "OU" else each.values
        for name, found in maps.items()
        for variable, each in found.data_vars.items()
        if "reason" not in str(variable)
    }


def main(folder: Path) -> None:
    """Writes all of it."""
    model = accept(build(next(one for one in FAMILIES if one.name == "llama")), WORDS, name="tiny")
    pair = ct.Pair(**PAIR, subject="w13", corrupt_subject="w43")
    noised = ct.Pair(clean=PAIR["clean"], answer=" w7", foil=" w8", subject="w13")
    saved = {
        "heads-and-neurons": ct.trace(
            model, pair, layers=[0, 2], heads=["z", "k"], head_positions=["last"], neurons={2: [3, 5, 60]},
        ),
        "noise-and-windows": ct.trace(
            model, noised, noise=ct.Noise(draws=3), window={"mlp_out": 3}, sever=["mlp_out"],
            components=["resid_post", "mlp_out"], layers=[1, 2], positions=["subject_last", "last"],
        ),
    }  # fmt: skip
    for name, trace in saved.items():
        trace.save(folder / name)
    ct.run(model, many(), folder / "run", layers=[1, 3], heads=["z"], head_positions=["last"])
    (folder / "run" / "lock").unlink(missing_ok=True)
    saved["run"] = ct.open_trace(folder / "run")
    attribution = ct.attribute(model, pair, components=["mlp_out", "z"], verify=3, sample=4)
    attribution.save(folder / "attribution.json")
    words_of = {name: trace.summary() for name, trace in saved.items()}
    documents = {name: document(trace.measurements, all_metrics=True) for name, trace in saved.items()}
    for name, trace in saved.items():
        np.savez_compressed(folder / f"{name}.npz", **arrays(trace))
    table = attribution.verified.sort_values(["component", "layer", "position", "unit"])
    said = {"words": words_of, "documents": documents, "verified": json.loads(table.to_json(orient="records"))}
    (folder / "said.json").write_text(json.dumps(said, allow_nan=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
