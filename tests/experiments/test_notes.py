"""Notes are told with the line of whoever called the package, whichever verb says them."""

import json
from pathlib import Path

from forked_driver import executed

TESTS = Path(__file__).parents[1]
# In a process of its own: here the types are checked at each call, by frames that no user has.
CALLER = f"""
import json, sys, warnings
sys.path.insert(0, {str(TESTS)!r})
import causal_tracing as ct
from families import build
from loaded import BY_NAME, WORDS

model = ct.load(build(BY_NAME["mamba"]), tokenizer=WORDS)
pair = ct.Pair(clean="w5 w17 w42", corrupt="w5 w18 w42", answer=" w7", foil=" w8")
said = []
for asked in (
    lambda: ct.trace(model, pair, progress=False),
    lambda: ct.run(model, [pair], sys.argv[1], progress=False),
    lambda: ct.attribute(model, pair, verify=1, sample=1, progress=False),
    lambda: ct.estimate(model, pair),
    lambda: ct.paths(model, pair, progress=False),
    lambda: ct.circuit(model, pair, ranking=["mixer_out 1"], sizes=[1], progress=False),
):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ct.errors.Note)
        asked()
    said.append([[each.category.__name__, each.filename, each.lineno] for each in caught])
print(json.dumps(said))
"""


def test_each_verb_names_the_line_that_called_it(tmp_path: Path):
    caller = tmp_path / "caller.py"
    caller.write_text(CALLER)
    done = executed(caller, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    lines = CALLER.splitlines()
    verbs = ("trace", "run", "attribute", "estimate", "paths", "circuit")
    for verb, said in zip(verbs, json.loads(done.stdout), strict=True):
        assert said, verb
        assert "ComponentNote" in {name for name, *_ in said} or verb in ("paths", "circuit")
        for name, file, number in said:
            assert file == str(caller), (verb, name)
            assert f"ct.{verb}(" in lines[number - 1], (verb, name)
