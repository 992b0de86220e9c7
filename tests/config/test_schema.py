from dataclasses import FrozenInstanceError

import pytest

from unlearn.config import schema
from unlearn.config.schema import (
    EvaluationConfig,
    LatentsConfig,
    LoRAConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    SAEConfig,
    SourceConfig,
    TrainerConfig,
)
from unlearn.errors import ConfigError


def test_defaults_are_valid_and_frozen():
    config = RunConfig()
    with pytest.raises(FrozenInstanceError):
        config.seed = 1  # type: ignore[misc]


def test_every_section_can_be_imported_from_schema():
    assert {info.__class__.__name__ for info in vars(RunConfig()).values() if hasattr(info, "__dataclass_fields__")} <= set(schema.__all__)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (OptimConfig, {"lr": 0.0}, "optim.lr must be > 0; found 0.0."),
        (OptimConfig, {"steps": -1}, "optim.steps must be >= 0; found -1."),
        (OptimConfig, {"betas": [0.9]}, "optim.betas must be two numbers in [0, 1); found [0.9]."),
        (OptimConfig, {"schedule": "cos"}, "optim.schedule must be one of constant, linear, cosine; found 'cos'."),
        (SAEConfig, {"release": "r"}, "sae.sae_id must be given together with sae.release; found None."),
        (SAEConfig, {"release": "r", "sae_id": "i", "path": "p"}, "sae.path must be null when sae.release is given; found 'p'."),
        (SAEConfig, {"max_fvu": 0.0}, "sae.max_fvu must be in (0, 1]; found 0.0."),
        (
            ModelConfig,
            {"dtype": "float23"},
            "model.dtype must be one of float32, bfloat16, float16; found 'float23'. Did you mean 'float32'?",
        ),
        (LoRAConfig, {"dropout": 1.0}, "model.lora.dropout must be in [0, 1); found 1.0."),
        (LatentsConfig, {"bank_rows": 1}, "latents.bank_rows must be >= 2; found 1."),
        (TrainerConfig, {"accumulate": 0}, "trainer.accumulate must be >= 1; found 0."),
        (EvaluationConfig, {"collapse_perplexity": 1.0}, "evaluation.collapse_perplexity must be > 1; found 1.0."),
        (SourceConfig, {"question_format": "Q:"}, "data.question_format must be a text that contains {question}; found 'Q:'."),
    ],
)
def test_ranges(section, values, message):
    with pytest.raises(ConfigError) as error:
        section(**values)
    assert str(error.value).startswith(message)
