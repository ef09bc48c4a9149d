"""The anatomy of a model whose weights are elsewhere: what a server says against it is not taken for something else."""

from typing import Any

import pytest
import torch

from causal_tracing.errors import MachineError
from tiny import tiny_model, tiny_tokenizer

pytest.importorskip("nnsight")

from causal_tracing.engine.nnsight.jobs import JobFailed
from causal_tracing.engine.nnsight.named import anatomy_by_names


class Answers:
    """A server that gives these answers in turn."""

    name = "answers"

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def answer(self, asked: Any) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


FIRST = (torch.tensor([0.7, 0.7, 0.7, 0.7]), "torch.float32")


def test_a_server_that_is_gone_is_no_missing_part():
    with pytest.raises(MachineError, match="gone"):
        anatomy_by_names(tiny_model(), tiny_tokenizer(), Answers(FIRST, MachineError("gone")))


def test_what_a_failed_job_says_stands_in_the_refusal():
    anatomy, dtype = anatomy_by_names(tiny_model(), tiny_tokenizer(), Answers(FIRST, *[JobFailed("no memory")] * 4))
    assert dtype == "float32"
    assert dict(anatomy.refused)["attn_out"].endswith("add up to what a layer adds. no memory")
    assert anatomy.components == ("resid_pre", "resid_mid", "mixer_out", "resid_post")


def test_parts_that_do_not_add_up_are_not_offered_and_those_that_do_are():
    wrong = [(torch.tensor([0.0, 0.0, 0.1, 0.0]), "torch.float32")] * 4
    anatomy, _ = anatomy_by_names(tiny_model(), tiny_tokenizer(), Answers(FIRST, *wrong))
    assert "mlp_out" in dict(anatomy.refused)
    anatomy, _ = anatomy_by_names(tiny_model(), tiny_tokenizer(), Answers(FIRST, (torch.zeros(4), "torch.float32")))
    assert anatomy.layouts[0].mlp == "mlp"
    assert dict(anatomy.counts) == {"z": 4, "neurons": 64}
