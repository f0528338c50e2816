"""Shards and parts as names and numbers, and files that several processes write."""

import zipfile
from pathlib import Path

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.seeds import parse
from bdia_exp.store.files import write_once
from bdia_exp.store.image_sets import ImageSet
from bdia_exp.store.manifest import Manifest
from bdia_exp.store.shards import Part, Shards, cut

BLACK = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)


def test_shards_are_fixed_ranges_of_seeds_whatever_the_run_wants():
    shards = cut(parse("95-205,3,300-399"), 100)
    assert [shard.first for shard in shards] == [0, 100, 200, 300]
    assert [[*shard.seeds] for shard in shards] == [
        [3, 95, 96, 97, 98, 99],
        [*range(100, 200)],
        [*range(200, 206)],
        [*range(300, 400)],
    ]
    (last,) = cut(parse("4294967295"), 1000)
    assert last.name == "4294967000-4294967999"


@pytest.mark.parametrize("count", [1, 3, 9])
def test_each_shard_is_in_one_part(tmp_path, count):
    parts = [Part(number, count) for number in range(1, count + 1)]
    shares = [Shards(tmp_path, parse("0-69"), 10, part).mine for part in parts]
    assert sorted(shard.first for share in shares for shard in share) == [*range(0, 70, 10)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_shard_has_its_name_only_when_it_is_whole(tmp_path):
    with Shards(tmp_path, parse("0-3"), 4) as shards:
        shards.write([0, 1], BLACK)
        (part,) = (tmp_path / "shards").iterdir()
        assert part.name.endswith(".part")
    assert not list((tmp_path / "shards").iterdir())
    with shards:
        shards.write([0, 1], BLACK, torch.tensor([5, 6]))
        shards.write([2, 3], BLACK, torch.tensor([7, 8]))
    (file,) = (tmp_path / "shards").iterdir()
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
    assert not shards.missing()
    assert Manifest(tmp_path, "shards").stated() == {file.name: shards.manifest.stated()[file.name]}
    (tmp_path / "record.json").write_text("{}")
    found = ImageSet(tmp_path)
    assert found.labels == [5, 6, 7, 8]
    assert (found.read(range(4)) == 0).all()


def test_a_shard_that_was_put_aside_is_listed_again_by_who_knew_its_line(tmp_path):
    seeds = parse("0-1")
    Shards(tmp_path, seeds, 2).write([0, 1], BLACK)
    part = Shards(tmp_path, seeds, 2, Part(1, 1))
    verifying = Shards(tmp_path, seeds, 2)
    verifying.put_aside(verifying.files(verifying.all[0]))
    part.manifest.refresh()
    assert part.missing() == part.all
    part.write([0, 1], BLACK)
    assert not Shards(tmp_path, seeds, 2).missing()


def test_what_was_measured_of_a_shard_does_not_outlive_its_images(tmp_path):
    shards, end = Shards(tmp_path, parse("0-1"), 2), ".features-0.npz"
    shards.write([0, 1], BLACK)
    shards.keep(shards.all[0], end, {"features": BLACK.numpy()})
    assert not shards.missing(end)
    assert (shards.kept(shards.all[0], end)["features"] == 0).all()
    shards.write([0, 1], BLACK + 1)
    assert not shards.missing()
    assert shards.missing(end) == shards.all
    with pytest.raises(OSError, match="missing or damaged"):
        shards.kept(shards.all[0], end)


@pytest.mark.parametrize("table", ["[]", "{", '{"labels": 3}'])
def test_a_table_of_labels_that_is_none_is_said(tmp_path, table):
    shards = Shards(tmp_path, parse("0-1"), 2)
    shards.write([0, 1], BLACK)
    (file,) = (tmp_path / "shards").iterdir()
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("dataset.json", table)
    shards.manifest.merge(without=[file.name])
    shards.manifest.state(file.name, (file.stat().st_size, "0" * 64))
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(UserError, match=r"dataset\.json in .*\.zip has no list of labels"):
        ImageSet(tmp_path)


def test_what_is_written_once_stays_as_its_first_writer_left_it(tmp_path):
    file: Path = tmp_path / "record.json"
    for text in ("first", "second"):
        write_once(file, text)
    assert file.read_text() == "first"
    assert [*tmp_path.iterdir()] == [file]
