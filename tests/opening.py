"""How opening a model goes wrong, and a model whose folder brings code along."""

import json
from pathlib import Path
from typing import Any

import pytest

from causal_tracing.errors import CausalTracingError
from causal_tracing.models.open import open_model
from tiny import tiny_folder

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def refused(kind: type[CausalTracingError], *names: Any, **options: Any) -> str:
    """The message of exactly this error."""
    with pytest.raises(kind) as caught:
        open_model(*names, **options)
    assert caught.type is kind
    return str(caught.value)


def with_code(folder: Path, mark: Path) -> None:
    """A model that comes with Python code of its own; the code leaves a mark when it runs."""
    tiny_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
