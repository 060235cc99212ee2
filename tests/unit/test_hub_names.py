"""Which file of a repository is meant, by names alone: as repositories are really laid out."""

from __future__ import annotations

import pytest

from entmtp_local.errors import HubError, UsageError
from entmtp_local.hub.names import Reference, RepoFile, RepoModel, choose, head_for, models_of

GB = 1_000_000_000


def listing(*names: str) -> tuple[list[RepoModel], list[str]]:
    return models_of(RepoFile(name, GB) for name in names)


def chosen(quant: str | None, *names: str) -> list[str]:
    return [model.name for model in choose(*listing(*names), Reference("o/r", quant))]


def refusal(quant: str | None, *names: str) -> str:
    with pytest.raises(HubError) as caught:
        choose(*listing(*names), Reference("o/r", quant))
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence


@pytest.mark.parametrize(
    ("text", "repo", "quant"),
    [
        ("owner/model-GGUF", "owner/model-GGUF", None),
        ("owner/model-GGUF:Q4_K_M", "owner/model-GGUF", "Q4_K_M"),
        ("owner/model_v1.5:folder/file-00001-of-00002.gguf", "owner/model_v1.5", "folder/file-00001-of-00002.gguf"),
    ],
)
def test_references(text: str, repo: str, quant: str | None) -> None:
    reference = Reference.parse(text)
    assert (reference.repo, reference.quant, str(reference)) == (repo, quant, text)


@pytest.mark.parametrize("text", ["", "model", "owner/", "/model", "a/b/c", "owner/model:", "owner/model:Q4\n", "o w/model"])
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(UsageError, match="OWNER/NAME:QUANT"):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("name", "quant", "base", "is_head", "is_marked"),
    [
        ("Qwen3.6-27B-Q4_K_M.gguf", "Q4_K_M", "qwen3-6-27b", False, False),
        ("Qwen3.6-27B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL", "qwen3-6-27b", False, False),
        ("Qwen3.6-27B-MTP-Q8_0.gguf", "Q8_0", "qwen3-6-27b", False, True),
        ("Qwen3.6-27B-Q8_0-MTP.gguf", "Q8_0", "qwen3-6-27b", False, True),
        ("qwen3.6-27b-mtp.q5_k_m.gguf", "Q5_K_M", "qwen3-6-27b", False, True),
        ("mtp-Qwen3.6-27B-Q8_0.gguf", "Q8_0", "qwen3-6-27b", True, False),
        ("MTP/Qwen3.6-27B-BF16.gguf", "BF16", "qwen3-6-27b", True, False),
        ("BF16/Qwen3.6-27B.gguf", "BF16", "qwen3-6-27b", False, False),
        ("gpt-oss-20b-MXFP4.gguf", "MXFP4", "gpt-oss-20b", False, False),
        ("model-IQ2_XXS.gguf", "IQ2_XXS", "model", False, False),
        ("Model-APEX-Compact.gguf", "", "model-apex-compact", False, False),
    ],
)
def test_what_names_say(name: str, quant: str, base: str, is_head: bool, is_marked: bool) -> None:
    (model,), incomplete = listing(name)
    assert (model.quant, model.base, model.is_head, model.is_marked) == (quant, base, is_head, is_marked)
    assert incomplete == []


def test_files_that_are_no_models() -> None:
    names = ("mmproj-F16.gguf", "imatrix.gguf", "m-imatrix.gguf", "README.md", "eagle3-m-Q8_0.gguf", "m-lora-F16.gguf")
    assert listing(*names, "../m-Q4_0.gguf", "/m-Q4_0.gguf", "m\x1b[2J-Q4_0.gguf", "m\n-Q4_0.gguf") == ([], [])


def test_parts_are_put_together_and_missing_ones_noticed() -> None:
    first, second = "Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"
    (model,), _ = listing(second, first)
    assert [file.name for file in model.files] == [first, second]
    assert (model.size, model.quant) == (2 * GB, "Q8_0")
    models, incomplete = listing(second, "m-Q4_0.gguf")
    assert [each.name for each in models] == ["m-Q4_0.gguf"] and incomplete == ["Q8_0/m-Q8_0"]
    assert "parts of o/r:Q8_0 are missing" in refusal("Q8_0", second, "m-Q4_0.gguf")
    assert "only incomplete models" in refusal(None, second)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-BF16.gguf"), "m-Q4_K_M.gguf"),
        (("m-Q8_0.gguf", "m-UD-Q4_K_XL.gguf", "m-IQ4_XS.gguf"), "m-UD-Q4_K_XL.gguf"),
        (("m-Q8_0.gguf", "m-Q5_K_M.gguf", "m-Q2_K.gguf"), "m-Q5_K_M.gguf"),
        (("m-F16.gguf",), "m-F16.gguf"),
        # the one with a head, also where it is not of the usual quantisation
        (("m-Q4_K_M.gguf", "m-MTP-Q4_K_M.gguf", "m-MTP-Q8_0.gguf"), "m-MTP-Q4_K_M.gguf"),
        (("m-Q4_K_M.gguf", "m-MTP-Q8_0.gguf"), "m-MTP-Q8_0.gguf"),
        (("mtp-m-Q4_K_M.gguf", "m-Q4_K_M.gguf", "mmproj-m-Q4_K_M.gguf"), "m-Q4_K_M.gguf"),
    ],
)
def test_without_a_quantisation(names: tuple[str, ...], expected: str) -> None:
    assert chosen(None, *names)[0] == expected


@pytest.mark.parametrize(
    ("quant", "expected"),
    [
        ("q4_k_m", "m-Q4_K_M.gguf"),
        ("Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("Q8_0", "big/m-Q8_0.gguf"),
        ("m-Q8_0.gguf", "big/m-Q8_0.gguf"),
        ("big/m-Q8_0.gguf", "big/m-Q8_0.gguf"),
    ],
)
def test_by_quantisation_or_name(quant: str, expected: str) -> None:
    assert chosen(quant, "m-Q4_K_M.gguf", "m-UD-Q4_K_XL.gguf", "m-Q4_K_S.gguf", "big/m-Q8_0.gguf") == [expected]


def test_marked_files_come_first_among_equals() -> None:
    assert chosen("Q8_0", "m-Q8_0.gguf", "m-MTP-Q8_0.gguf") == ["m-MTP-Q8_0.gguf", "m-Q8_0.gguf"]


def test_wrong_names_say_what_there_is() -> None:
    sentence = refusal("Q3_K_M", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "mtp-m-Q8_0.gguf")
    assert "nothing named Q3_K_M, but Q4_K_M (1.0 GB), Q8_0 (1.0 GB)" in sentence
    assert "entmtp-local pull o/r:Q4_K_M" in sentence
    # a part of a quantisation is none
    assert "nothing named Q4_K" in refusal("Q4_K", "m-Q4_K_M.gguf")
    assert "no GGUF files" in refusal(None, "model.safetensors")
    assert "only MTP heads" in refusal(None, "mtp-m-Q8_0.gguf")
    assert "usual choice" in refusal(None, "m-F16.gguf", "m-F32.gguf")


def test_what_may_mean_several_models_is_refused() -> None:
    sentence = refusal("COMPACT", "m-I-Compact.gguf", "m-Compact.gguf")
    assert "may mean 2 models: m-Compact.gguf, m-I-Compact.gguf" in sentence
    assert "may mean 2 models" in refusal(None, "a-4B-Q4_K_M.gguf", "b-9B-Q4_K_M.gguf")
    assert chosen("m-Compact.gguf", "m-I-Compact.gguf", "m-Compact.gguf") == ["m-Compact.gguf"]


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        ((), None),
        (("mtp-m-Q8_0.gguf", "mtp-m-Q4_K_M.gguf"), "mtp-m-Q4_K_M.gguf"),
        (("mtp-m-Q8_0.gguf", "mtp-m-BF16.gguf"), "mtp-m-Q8_0.gguf"),
        (("mtp-m-Q3_K.gguf", "mtp-m-Q5_0.gguf"), "mtp-m-Q5_0.gguf"),
        (("MTP/head-F16.gguf",), "MTP/head-F16.gguf"),
    ],
)
def test_the_head_of_a_model(heads: tuple[str, ...], expected: str | None) -> None:
    found, _ = listing("m-Q4_K_M.gguf", "m-Q8_0.gguf", *heads)
    head = head_for(next(model for model in found if model.quant == "Q4_K_M" and not model.is_head), found)
    assert (head.name if head else None) == expected


def test_heads_of_other_models_are_not_taken() -> None:
    found, _ = listing("a-4B-Q4_K_M.gguf", "b-9B-Q4_K_M.gguf", "mtp-b-9B-Q4_K_M.gguf")
    by_name = {model.name: model for model in found}
    assert head_for(by_name["a-4B-Q4_K_M.gguf"], found) is None
    assert head_for(by_name["b-9B-Q4_K_M.gguf"], found) == by_name["mtp-b-9B-Q4_K_M.gguf"]
