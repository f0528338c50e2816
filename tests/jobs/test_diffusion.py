"""`diffusion=` on the command line: identities, trips with velocity, and what is refused."""

import pytest
import torch

from bdia_exp.cli.configs import call, settings
from bdia_exp.errors import UserError
from bdia_exp.jobs.identity import identity_of, plainly
from bdia_exp.jobs.sampling import Job
from bdia_exp.store.image_sets import ImageSet


def identity(*words: str) -> dict:
    return identity_of(settings("sample", [*words]), {}, seeds="0-63")


def test_the_diffusion_is_part_of_an_identity_unless_it_is_the_model_s_own():
    words = ["sampler=gddim", "grid=quadratic_time"]
    own = identity(*words)
    assert "diffusion" not in own
    assert own == identity(*words, "diffusion=own")
    assert identity(*words, "diffusion=cld") == own | {"diffusion": {"call": "cld"}}
    other = identity(*words, "diffusion=cld", "diffusion.gamma=0.1")
    assert other == own | {"diffusion": {"call": "cld", "gamma": 0.1}}
    assert plainly(other) == other


def test_gddim_s_calls_are_named_in_identities():
    words = "diffusion=cld", "sampler=gddim_multistep"
    assert identity(*words) == identity("sampler=ddim") | {
        "sampler": {"call": "multistep", "rule": {"call": "predictor"}},
        "grid": {"call": "quadratic_time"},
        "diffusion": {"call": "cld"},
    }
    for name, function in (("gddim_pc", "predict_correct"), ("gddim_sde", "stochastic")):
        assert identity(f"sampler={name}")["sampler"] == {"call": function}
    for name, function in (("em", "em"), ("sscs", "sscs"), ("cld_rk45", "rk45")):
        assert identity(f"sampler={name}")["sampler"] == {"call": function}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["grid=karras"], "choose grid=quadratic_time"),
        (["grid=quad", "sampler=ddim"], "with diffusion=cld grid=quadratic_time"),
        (["grid=arc"], "choose grid=quadratic_time"),
        (["sampler=deis_tab"], "one sigma"),
        (["sampler=dpmpp_2m"], "^this sampler needs levels with one sigma"),
        (["sampler=iia_dpmpp"], "^this sampler needs levels with one sigma"),
        (["sampler=bdia2"], "one sigma"),
        (["sampler=rex"], "one sigma"),
        (["sampler=f_pndm"], "sampler=ipndm"),
        (["sampler=edm_churn"], "choose grid=karras and diffusion=own"),
        (["sampler=gddim_multistep", "sampler.rule.order=5"], "must be 1, 2, 3 or 4"),
        (["sampler=gddim_multistep", "sampler.rule.K=M"], "sampler.rule.K='M' is unknown"),
        (["sampler=gddim_sde", "sampler.lam=-1"], "must be 0 or more"),
        (["sampler=gddim_sde", "sampler.gamma=0.5"], "there is no key 'sampler.gamma'"),
        (["sampler=em", "+sampler.gamma=0.5"], "there is no key 'sampler.gamma'"),
        (["sampler=gddim", "sampler.gamma=1.5"], "must be 0 to 1"),
        (["diffusion.Gamma=3"], "critical damping"),
        (["diffusion.beta=200"], "noise at t = 1 is inf times the image"),
        (["diffusion.beta=20"], "choose diffusion.beta near"),
        (["diffusion.beta=0.000001"], "noise at t = 1 is 0.001 times the image"),
        (["diffusion.gamma=1e300"], "1e-12 to 1e12"),
        (["sampler=sscs", "diffusion.beta=1e-120"], "1e-12 to 1e12"),
        (["grid.t_min=2"], "below 1"),
        (["sampler=gddim_pc", "nfe=20"], "choose 19 or 21"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(words, told):
    with pytest.raises(UserError, match=told) as error:
        Job.of(settings("sample", ["diffusion=cld", *words]), "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", [[], ["sampler=bdia_ddim"]], ids=str)
def test_a_fit_of_pairs_is_refused_for_what_it_is(words):
    with pytest.raises(UserError, match="a fit needs levels of numbers"):
        call("fit", ["diffusion=cld", "nfe=5", "device=cpu", *words])


def test_other_diffusions_do_not_exist():
    with pytest.raises(UserError, match="diffusion=blur does not exist"):
        settings("sample", ["diffusion=blur"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("cld") / "made"
    words = [
        "diffusion=cld",
        "sampler=gddim_multistep",
        "nfe=6",
        "images=2",
        "batch=2",
        f"out={root}",
        "device=cpu",
    ]
    return root, call("sample", words)


def test_a_run_makes_images_of_pairs(made):
    root, record = made
    assert record["nfe"] == 6
    assert record["config"]["diffusion"]["gamma"] == 0.04
    assert len(ImageSet(str(root)).read([0, 1]).unique(dim=0)) == 2


@pytest.mark.parametrize("more", [["sampler.gamma=0.9"], ["state=fixed"]], ids=str)
def test_a_round_trip_of_pairs_returns_every_pixel(made, tmp_path, more):
    words = [f"images={made[0]}", "diffusion=cld", "nfe=5", "device=cpu", f"out={tmp_path}/back"]
    record = call("roundtrip", [*words, *more])
    assert record["pixel_error"] == {"max": 0, "rms": 0}
    assert 0.3 < record["noise"]["expected_rms"] < 1.2
    assert record["state_error"]["max"] < 1e-9


def test_an_edit_of_pairs_changes_the_class_and_returns_the_image(made, tmp_path):
    words = [f"images={made[0]}", "diffusion=cld", "nfe=8", "to=8", "device=cpu"]
    record = call("edit", [*words, f"out={tmp_path}/edit"])
    assert record["pixel_error"] == {"max": 0, "rms": 0}
    assert record["edit_distance"]["rms"] > 10


def test_a_sheet_of_edits_has_pairs_too(made, tmp_path):
    words = [f"images={made[0]}", "to=8", "steps=4", "methods=bdia_ddim", f"out={tmp_path}/sheet"]
    records = call("edits", [*words, "settings='diffusion=cld'", "limit=1"])
    assert [record["pixel_error"]["max"] for record in records.values()] == [0]


@pytest.mark.parametrize("sampler", ["gddim_sde", "em", "sscs"])
def test_noise_comes_from_the_generator_of_each_image(sampler):
    job = Job.of(settings("sample", ["diffusion=cld", f"sampler={sampler}", "nfe=3"]), "cpu")
    both, one, other = (job.sample(seeds, lambda: None).states for seeds in ([3, 4], [4], [5]))
    assert torch.equal(both[1:], one)
    assert not torch.equal(one, other)
