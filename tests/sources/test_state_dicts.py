"""Where weights are in a file's contents: averaged ones first, without the wrappers' prefixes."""

import pytest
import torch

from bdia_exp.errors import UserError
from bdia_exp.sources.state_dicts import weights_of

pytestmark = pytest.mark.quick

OWN = {"conv_in.weight": torch.full((2, 3), 1.0), "mid.block_1.bias": torch.full((2,), 2.0)}
EDM = {"model.map_layer0.weight": torch.ones(2, 2), "model.enc.8x8_conv.bias": torch.ones(2)}
LDM = {"model.diffusion_model.out.2.weight": torch.ones(2, 2)}
VAE = {"first_stage_model.decoder.bias": torch.ones(2)}


def raw(state: dict) -> dict:
    return {name: torch.zeros_like(value) for name, value in state.items()}


def named(prefix: str, state: dict, suffix: str = "") -> dict:
    return {f"{prefix}{name}{suffix}": value for name, value in state.items()}


def dotless(state: dict) -> dict:
    """The averages of Stable Diffusion's program: names without dots, and two counters."""
    names = {"model_ema." + n.removeprefix("model.").replace(".", ""): n for n in state}
    counters = {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(3)}
    return {name: state[own] for name, own in names.items()} | counters


def assert_same(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


CONTAINERS = ["ema", "ema_model", "model_ema", "ema_state_dict", "state_dict_ema", "params_ema"]
CONTAINERS += ["shadow", "EMA", "netG_EMA", "emaModel", "modelEma", "swa_state", "ema.params"]


@pytest.mark.parametrize("name", CONTAINERS)
def test_averaged_weights_under_a_key_come_first(name):
    for other in ("model", "state_dict", "net"):
        assert_same(weights_of({other: raw(OWN), name: OWN, "step": 3}), OWN)
        assert_same(weights_of({name: named("module.", OWN), other: raw(OWN)}), OWN)
    assert_same(weights_of({name: OWN} | raw(OWN)), OWN)
    assert_same(weights_of({name: {"decay": 0.9, "shadow": OWN}, "model": raw(OWN)}), OWN)


def test_averaged_weights_of_a_lightning_callback():
    callbacks = {"EMACallback": {"ema_state_dict": named("model.", OWN)}, "best": {"score": 1}}
    assert_same(weights_of({"callbacks": callbacks, "state_dict": named("model.", raw(OWN))}), OWN)


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("empty", [{}, None, 0.999, [], "a", {"decay": torch.tensor(0.9)}])
def test_a_key_without_weights_does_not_count(name, empty):
    assert_same(weights_of({name: empty, "model": OWN}), OWN)


PREFIXES = [("ema.", ""), ("ema_", ""), ("model_ema.", ""), ("ema_model.", ""), ("shadow.", "")]


@pytest.mark.parametrize(("prefix", "suffix"), [*PREFIXES, ("", "_ema"), ("module.ema_", "")])
def test_averaged_weights_with_a_name_of_their_own_come_first(prefix, suffix):
    averages = named(prefix, OWN, suffix)
    assert_same(weights_of(averages), OWN)
    for wrapper in ("", "model.", "module.", "online_model.", "module.model."):
        assert_same(weights_of({**named(wrapper, raw(OWN)), **averages}), OWN)
        assert_same(weights_of({"state_dict": averages | named(wrapper, raw(OWN))}), OWN)


def test_stable_diffusion_s_averages_take_the_names_of_the_raw_weights():
    """The other networks of the file have no averages."""
    assert_same(weights_of(raw(LDM) | VAE | dotless(LDM)), LDM | VAE)
    assert_same(weights_of({"state_dict": dotless(LDM) | VAE | raw(LDM)}), LDM | VAE)
    assert_same(weights_of(LDM | VAE), LDM | VAE)


@pytest.mark.parametrize(
    ("root", "first", "second"),
    [
        ({"ema": {"shadow_params": [torch.ones(1)]}, "model": OWN}, "ema", "model"),
        ({"shadow_params": [torch.ones(1)], **OWN}, "shadow_params", "conv_in.weight"),
        ({"ema_params": {0: torch.ones(1)}, "state_dict": OWN}, "ema_params", "state_dict"),
        ({"ema.conv_in.weight": OWN["conv_in.weight"], **OWN}, "ema.conv_in", "mid.block_1.bias"),
        (OWN | {"ema.conv_in.weight": torch.ones(5)}, "ema.conv_in.weight", "conv_in.weight"),
        (OWN | {"quantise.ema_w": torch.ones(5)}, "quantise.ema_w", "conv_in.weight"),
        (LDM | VAE | {"model_ema.b": torch.ones(2)}, "model_ema.b", "diffusion_model"),
        ({"ema": OWN, "ema_slow": dict(OWN), "model": OWN}, "ema", "ema_slow"),
    ],
)
def test_averages_that_cannot_be_used_are_refused_beside_raw_weights(root, first, second):
    with pytest.raises(UserError, match="averaged weights") as caught:
        weights_of(root)
    assert first in str(caught.value)
    assert second in str(caught.value)


def test_two_averages_of_one_name():
    with pytest.raises(UserError, match=r"two tensors for conv\.bias"):
        weights_of({"ema.conv.bias": torch.ones(1), "conv.bias_ema": torch.ones(1)})


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "model._orig_mod."])
def test_a_wrapper_s_prefix_is_removed_if_all_names_have_it(prefix):
    assert_same(weights_of(named(prefix, OWN)), OWN)
    assert_same(weights_of(named(prefix, OWN) | {"n.a": torch.tensor(3)}), OWN)
    mixed = named(prefix, OWN) | {"other.weight": torch.ones(2)}
    assert_same(weights_of(mixed), mixed)


@pytest.mark.parametrize("own", [EDM, LDM, LDM | VAE])
def test_model_is_kept_where_it_is_part_of_the_network_s_names(own):
    for prefix in ("", "module.", "_orig_mod."):
        assert_same(weights_of(named(prefix, own)), own)
    assert_same(weights_of(named("model.", EDM)), EDM)
    assert_same(weights_of(named("ema_model.", EDM)), EDM)


def test_numbers_beside_the_weights_are_left_out():
    beside = {"epoch": 3, "loss": 0.1, "note": "a", "lr": None, "n_averaged": torch.tensor(7)}
    beside |= {3: torch.ones(2), "args": {"a": [1]}, "best": True}
    assert_same(weights_of(OWN | beside), OWN)
    assert_same(weights_of({"model": OWN | beside, **beside}), OWN)
    kept = OWN | {"norm.num_batches_tracked": torch.tensor(7)}
    assert_same(weights_of(kept), kept)


def test_the_last_of_a_list():
    optimiser = {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}
    assert_same(weights_of([raw(OWN), optimiser, 3, 4, named("module.", OWN)]), OWN)
    assert_same(weights_of((OWN, optimiser, 3)), OWN)


def test_what_contains_no_weights():
    loop: dict = {}
    loop["ema"] = loop["model"] = loop["a"] = loop
    wide: list = [1]
    for _ in range(30):
        wide = [wide] * 1000
    many = {f"ema{i}": loop for i in range(2000)}
    deep: dict = {"model": OWN}
    for _ in range(5):
        deep = {"model": deep}
    for root in (loop, wide, {"ema": wide}, many, deep, 3, None, {}, [], {"a": torch.tensor(1.0)}):
        with pytest.raises(UserError, match="no weights in it"):
            weights_of(root)
    long = {"module." * 5000 + "a": torch.ones(1)}
    assert list(weights_of(long)) == ["a"]
