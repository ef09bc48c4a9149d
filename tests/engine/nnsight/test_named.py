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
    right = torch.zeros(4), "torch.float32"
    server = Answers(FIRST, right, torch.zeros(4), torch.zeros(4))
    anatomy, _ = anatomy_by_names(tiny_model(), tiny_tokenizer(), server)
    assert anatomy.layouts[0].mlp == "mlp"
    assert dict(anatomy.counts) == {"z": 4, "neurons": 64}
    assert anatomy.mediators[-2:] == ("z", "neurons")


def test_a_projection_that_is_not_the_last_one_is_not_offered():
    right = torch.zeros(4), "torch.float32"
    server = Answers(FIRST, right, JobFailed("other shapes"), torch.tensor([0.0, 0.5, 0.0, 0.0]))
    anatomy, _ = anatomy_by_names(tiny_model(), tiny_tokenizer(), server)
    assert dict(anatomy.refused)["z"] == "its projection was not found by name. other shapes"
    assert "does not give what its module gives (5.0e-01 apart)" in dict(anatomy.refused)["neurons"]
    assert "mlp_out" in anatomy.components
