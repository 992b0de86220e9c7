import pytest

from unlearn.config.plugins import plugin_schemas
from unlearn.config.schema import MethodConfig, SourceConfig
from unlearn.errors import ConfigError
from unlearn.registry import entries


def test_every_plugin_has_a_dataclass_of_its_kind():
    schemas = plugin_schemas()
    assert all(issubclass(schemas["method"](name), MethodConfig) for name in entries("method"))
    assert all(issubclass(schemas["data"](name), SourceConfig) for name in entries("source"))
    assert entries("method")
    assert entries("source")


def test_an_unknown_name_is_reported_under_its_key():
    with pytest.raises(ConfigError, match=r"^method\.name must name a known method \(.*none.*\); found 'nonne'\. Did you mean 'none'\?$"):
        plugin_schemas()["method"]("nonne")
    with pytest.raises(ConfigError, match=r"^data\.source must name a known source"):
        plugin_schemas()["data"]("nothing like it")
