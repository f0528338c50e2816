"""Records: named by what decided them, whole on the disk, never mixed."""

import json

import pytest

from bdia_exp.errors import UserError
from bdia_exp.store import records
from bdia_exp.store.files import file_name


def test_digest_depends_on_the_values_and_not_on_their_order():
    a = records.digest({"nfe": 35, "sampler": {"gamma": 1.0, "rule": "x"}})
    assert a == records.digest({"sampler": {"rule": "x", "gamma": 1.0}, "nfe": 35})
    assert a != records.digest({"nfe": 35, "sampler": {"gamma": 0.5, "rule": "x"}})
    assert len(a) == 8


def test_record_round_trip(tmp_path):
    record = records.provenance() | {"fid": 1 / 3}
    records.save(tmp_path / "deep/record.json", record)
    assert records.load(tmp_path / "deep/record.json") == record
    assert records.load(tmp_path / "absent.json") is None


CUT = [
    '{"complete": true, "identity": {}}',
    '{"complete": false, "config": {}}',
]


@pytest.mark.parametrize("text", ['{"fid": 1', "[1]", "", *CUT])
def test_damaged_record_is_said(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        records.load(tmp_path / "record.json")


def test_commit_is_that_of_the_source_tree():
    found = records.commit()
    assert len(found.rstrip("+")) == 40 or "git" in found


def test_differences_are_named(tmp_path):
    old = json.loads(json.dumps({"sampler": {"gamma": 1.0}, "nfe": 35, "grid": (1, 2)}))
    records.require_same(tmp_path, old, {"sampler": {"gamma": 1.0}, "nfe": 35, "grid": (1, 2)})
    with pytest.raises(
        UserError, match=r"nfe was 35, now 23; sampler.gamma was 1.0, now the default"
    ):
        records.require_same(tmp_path, old, {"sampler": {}, "nfe": 23, "grid": (1, 2)})


def test_a_name_of_a_file_is_ascii_and_keeps_gamma():
    assert file_name("t-BDIA γ=0.5, ä/b-3") == "t-BDIA_gamma=0.5_b-3"
