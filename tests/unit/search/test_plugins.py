"""Entry points."""

import pytest

from search.errors import PluginError
from search.plugins import Plugins, load


def test_plugins_are_lazy_and_say_what_is_wrong() -> None:
    from importlib.metadata import EntryPoint

    points = {
        "good": EntryPoint("good", "json:dumps", "g"),
        "gone": EntryPoint("gone", "no_such_module_here:x", "g"),
        "empty": EntryPoint("empty", "json:no_such_name", "g"),
    }
    plugins = Plugins("g", points)
    assert plugins["good"]([1]) == "[1]"
    assert (len(plugins), plugins.where("gone")) == (3, "no_such_module_here:x")
    for name in ("gone", "empty"):
        with pytest.raises(PluginError, match=name):
            plugins[name]
    with pytest.raises(KeyError):
        plugins["nothing"]
    assert set(load("bough.strategies")) >= {"single", "best_of_n", "beam", "ets"}
    assert len(load("bough.no_such_group")) == 0
