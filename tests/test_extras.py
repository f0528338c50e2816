import sys

import pytest

from bdia_exp.errors import UserError
from bdia_exp.extras import require


def test_a_missing_package_is_named_with_the_way_to_it(monkeypatch):
    assert require("json").loads("1") == 1
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"\Adiffusers is needed here .*: run pip install '"):
        require("diffusers")
