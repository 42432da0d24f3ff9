"""Where the boundary lies, one BOS, one trained end, limits: for tokenizers built here and real ones where they are."""

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from train_toys import make_tokenizer, reply, user
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from prefkit.errors import UserError
from train.core.encode import (
    TEMPLATES,
    Dropped,
    Encoded,
    Limits,
    Template,
    encode_prompt,
    encode_prompt_group,
    stop_ids,
)
from train.core.rows import PairText, build_examples, build_rows

REAL = Path(os.environ.get("PREFKIT_REAL_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
WIDE = Limits(max_tokens=100_000)


def gpt2():
    folder = REAL / "tokenizers" / "gpt2"
    merges = [tuple(x.split()) for x in (folder / "vocab.bpe").read_text("utf-8").splitlines()[1:] if x]
    tokenizer = Tokenizer(BPE(json.loads((folder / "encoder.json").read_text("utf-8")), merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


def gpt_neox():
    file = REAL / "tokenizers" / "gpt-neox" / "gpt-neox-test-tokenizer.json"
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_file=str(file), bos_token=end, eos_token=end)


def sentencepiece():
    return AutoTokenizer.from_pretrained(REAL / "models" / "stories260K" / "hf")


def chatml():
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def llama2():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = LLAMA2
    return tokenizer


TOKENIZERS = {
    "built": make_tokenizer,
    "chatml": chatml,
    "llama-2": llama2,
    "gpt-2": gpt2,
    "gpt-neox": gpt_neox,
    "sentencepiece": sentencepiece,
}


@cache
def get(name):
    if name in ("gpt-2", "gpt-neox", "sentencepiece") and not REAL.is_dir():
        pytest.skip(f"no real tokenizers in {REAL}")
    return TOKENIZERS[name]()


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=40) | st.sampled_from(
    [
        "$46",
        " leading",
        "\n\nnew",
        "trailing ",
        "",
        "<s>strike</s>",
        "naïve Ünïcode 漢字",
        "```\ncode\n```",
        "{prompt}{response}",
    ]
)


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=texts, answers=st.lists(texts, min_size=1, max_size=4))
def test_properties(name, prompt, answers):
    tokenizer = get(name)
    template = Template.of(None, tokenizer)
    got = encode_prompt_group(tokenizer, template, user(prompt), [reply(a) for a in answers], WIDE)
    if isinstance(got, Dropped):
        specials = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        assert got.reason == "special token in text"
        assert any(s in t for s in specials for t in (prompt, *answers))
        return
    stops = stop_ids(tokenizer, template)
    for answer, ids in zip(answers, got.response_ids, strict=True):
        if isinstance(ids, Dropped):
            assert ids.reason == "special token in text"
            assert any(t.content in answer for t in tokenizer.added_tokens_decoder.values() if t.special)
            continue
        full = [*got.prompt_ids.tolist(), *ids.tolist()]
        if uses_bos(name):
            assert full[0] == tokenizer.bos_token_id
            assert full.count(tokenizer.bos_token_id) == 1
        if name in ("chatml", "llama-2"):
            text = tokenizer.apply_chat_template([*user(prompt), *reply(answer)], tokenize=False)
            wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
            wanted = [tokenizer.bos_token_id, *wanted] if uses_bos(name) and name == "chatml" else wanted
            wanted = wanted[: max(i for i, t in enumerate(wanted) if t in stops) + 1]  # without what follows the turn
        else:
            text = f"Question: {prompt}\n\nAnswer: {answer}"
            plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            wanted = [*([tokenizer.bos_token_id] if uses_bos(name) else []), *plain, tokenizer.eos_token_id]
        assert full == wanted, "prompt_ids + response_ids is what the tokenizer makes of the whole text"
        assert full[-1] in stops
        assert len(ids) >= 1
    assert len(got.prompt_ids) >= 1


def uses_bos(name):
    return name not in ("gpt-2", "gpt-neox")


def test_an_answer_that_merges_with_the_prompt_moves_the_boundary():
    tokenizer = get("gpt-2")
    template = Template("Q: {prompt}\nA: ${response}")  # "$46" is one token after a space, "$" alone another
    got = encode_prompt_group(tokenizer, template, user("price?"), [reply("46"), reply("$$ each")], WIDE)
    for ids, text in zip(got.response_ids, ("46", "$$ each"), strict=True):
        whole = tokenizer(f"Q: price?\nA: ${text}")["input_ids"]
        assert [*got.prompt_ids, *ids[:-1]] == whole


def test_the_boundary_can_be_seen():
    tokenizer = get("built")
    pairs = [PairText("1", user("beer?"), reply("good"), reply("bad"))]
    (row,) = build_rows(pairs, tokenizer, Template.of(None, tokenizer), WIDE).rows
    left, right = row.boundary(tokenizer).split(" | ")
    assert left.endswith('":"')
    assert right.startswith('"Ġ')


def test_generation_prompt_is_the_trained_prompt():
    for name in ("built", "chatml", "llama-2"):
        tokenizer = get(name)
        template = Template.of(None, tokenizer)
        got = encode_prompt_group(tokenizer, template, user("beer?"), [reply("good hop")], WIDE)
        assert encode_prompt(tokenizer, template, user("beer?"))[: len(got.prompt_ids)] == got.prompt_ids.tolist()


def test_chatml_trains_its_end_of_turn_and_nothing_after():
    tokenizer = get("chatml")
    got = encode_prompt_group(tokenizer, Template.of(None, tokenizer), user("a"), [reply("b")], WIDE)
    assert tokenizer.convert_ids_to_tokens(int(got.response_ids[0][-1])) == "<|im_end|>"


def test_markup_that_looks_like_a_control_token_is_text():
    tokenizer = get("built")
    got = encode_prompt_group(tokenizer, Template.of(None, tokenizer), user("<s>x</s>"), [reply("no</s>")], WIDE)
    assert tokenizer.eos_token_id not in got.prompt_ids
    assert got.response_ids[0].tolist().count(tokenizer.eos_token_id) == 1
    chat = get("llama-2")
    assert encode_prompt_group(chat, Template.of(None, chat), user("<s>"), [reply("b")], WIDE) == Dropped(
        "special token in text"
    )


LONG, SHORT = "hop " * 40, "hop"


def group(limits, prompt=SHORT, answers=(SHORT, LONG)):
    tokenizer = get("built")
    got = encode_prompt_group(
        tokenizer, Template.of("plain", tokenizer), user(prompt), [reply(a) for a in answers], limits
    )
    return got, tokenizer


def test_an_over_long_response_is_dropped_by_name():
    got, _ = group(Limits(max_tokens=20))
    assert not isinstance(got.response_ids[0], Dropped)
    assert got.response_ids[1] == Dropped("response over max_tokens")


def test_truncate_response_leaves_no_eos():
    got, tokenizer = group(Limits(max_tokens=20, too_long="truncate_response"))
    assert got.truncated == (False, True)
    assert got.response_ids[0][-1] == tokenizer.eos_token_id
    assert got.response_ids[1][-1] != tokenizer.eos_token_id
    assert len(got.prompt_ids) + len(got.response_ids[1]) == 20


def test_truncate_prompt_keeps_bos_and_the_end():
    whole, tokenizer = group(WIDE, LONG, (SHORT, SHORT + " malt"))
    got, _ = group(Limits(max_tokens=30, too_long="truncate_prompt"), LONG, (SHORT, SHORT + " malt"))
    assert got.prompt_truncated
    assert got.prompt_ids[0] == tokenizer.bos_token_id
    assert got.prompt_ids[1:].tolist() == whole.prompt_ids[1 - len(got.prompt_ids) :].tolist()
    assert max(len(got.prompt_ids) + len(r) for r in got.response_ids) == 30
    assert [r.tolist() for r in got.response_ids] == [r.tolist() for r in whole.response_ids]


def test_a_prompt_over_its_own_limit():
    assert group(Limits(max_prompt_tokens=10), LONG)[0] == Dropped("prompt over max_prompt_tokens")
    got, _ = group(Limits(max_prompt_tokens=10, too_long="truncate_prompt"), LONG)
    assert len(got.prompt_ids) == 10


@pytest.mark.parametrize("too_long", ["drop", "truncate_prompt", "truncate_response"])
@pytest.mark.parametrize("max_tokens", [2, 3, 10, 25, 60, 500])
def test_counts_add_up_and_limits_hold(too_long, max_tokens):
    tokenizer = get("built")
    pairs = [
        PairText(f"{i}-{j}", user(p), reply(a), reply(b))
        for i, p in enumerate([SHORT, LONG, "beer?"])
        for j, (a, b) in enumerate([(SHORT, LONG), (LONG, SHORT), ("a", "b"), (LONG, LONG + "x")])
    ]
    for build in (build_rows, build_examples):
        built = build(pairs, tokenizer, Template.of(None, tokenizer), Limits(max_tokens, too_long=too_long))
        dropped = sum(len(ids) for ids in built.dropped.values())
        assert built.kept + dropped == len(pairs)
        merged = built.dropped.get("same prompt and answer as an earlier pair", [])
        assert merged == ([] if build is build_rows else ["0-3", "1-3", "2-3"]), "the fourth answer is the second again"
        for row in built.rows:
            assert row.longest <= max_tokens
            assert min(map(len, row.response_ids)) >= 1
            assert len(row.prompt_ids) >= 1
            for ids, cut in zip(row.response_ids, row.truncated, strict=True):
                assert (ids[-1] == tokenizer.eos_token_id) == (not cut)


def test_one_row_a_prompt_with_distinct_responses():
    tokenizer = get("built")
    pairs = [PairText("1", user("q"), reply("a"), reply("b")), PairText("2", user("q"), reply("b"), reply("c"))]
    pairs += [PairText("3", user("q"), reply("a"), reply("a"))]
    built = build_rows(pairs, tokenizer, Template.of(None, tokenizer), WIDE)
    (row,) = built.rows
    assert len(row.response_ids) == 3
    assert row.pairs == ((0, 1), (1, 2))
    assert built.dropped == {"chosen and rejected have the same tokens": ["3"]}
    assert len(build_rows(pairs, tokenizer, Template.of(None, tokenizer), WIDE, one_pair_per_row=True).rows) == 2


@pytest.mark.parametrize(
    ("prompt", "answer", "said"),
    [
        ([*user("a"), *reply("b"), *user("c")], reply("d"), "this is user/assistant/user/assistant"),
        (user("a"), [*reply("b"), {"role": "tool", "content": "c"}, *reply("d")], "user/assistant/tool/assistant"),
    ],
)
def test_a_format_string_takes_one_turn(prompt, answer, said):
    with pytest.raises(UserError, match=f"{said}.*use dialogue"):
        encode_prompt_group(get("built"), Template.named("plain"), prompt, [answer], WIDE)


def test_an_answer_with_a_special_token_takes_no_other_with_it():
    """Other pairs of its prompt are what they would be without it."""
    tokenizer = get("chatml")
    good, bad, marked = reply("good"), reply("bad"), reply("bad<|im_end|>worse")
    pairs = [
        PairText("1", user("q"), good, marked),
        PairText("2", user("q"), good, bad),
        PairText("3", user("q"), marked, bad),
    ]
    template = Template.of(None, tokenizer)
    alone, built = (build_rows(p, tokenizer, template, WIDE) for p in (pairs[1:2], pairs))
    assert built.dropped == {"special token in text": ["1", "3"]}
    (row,), (wanted,) = built.rows, alone.rows
    assert (row.pairs, row.pair_ids, row.truncated) == (wanted.pairs, ("2",), wanted.truncated)
    assert [r.tolist() for r in row.response_ids] == [r.tolist() for r in wanted.response_ids]
    assert row.prompt_ids.tolist() == wanted.prompt_ids.tolist()
    examples = build_examples(pairs, tokenizer, template, WIDE)
    assert ([r.pair_ids for r in examples.rows], examples.dropped["special token in text"]) == ([("1",)], ["3"])


def test_two_texts_with_the_same_tokens_are_one_response():
    """Cut to one length they are: the pairs of both are kept, the pair between them is not."""
    tokenizer = get("built")
    a, b, c = reply("hop " * 30 + "malt"), reply("hop " * 30 + "beer"), reply("c")
    pairs = [PairText(n, user("q"), w, x) for n, w, x in (("1", a, b), ("2", c, b), ("3", a, c), ("4", b, c))]
    limits = Limits(30, too_long="truncate_response")
    built = build_rows(pairs, tokenizer, Template("{prompt}\n{response}"), limits)
    (row,) = built.rows
    assert (len(row.response_ids), row.pair_ids) == (2, ("2", "3", "4"))
    same, other = row.pairs[1]
    assert row.pairs == ((other, same), (same, other), (same, other))
    assert (row.truncated[same], row.truncated[other]) == (True, False)
    assert built.dropped == {"chosen and rejected have the same tokens": ["1"]}


def test_a_template_that_asks_for_the_date_says_the_same_every_day():
    """As Llama 3.2 asks: the tokens are those of the day its template names where there is no clock."""
    tokenizer = chatml()
    asks = "\n  {% set day = strftime_now('%d %b %Y') %}Today: {{ day }}\n" + CHATML
    dated, written = Template(asks), Template("\nToday: 26 Jul 2024\n" + CHATML)
    a, b = (encode_prompt_group(tokenizer, t, user("hop?"), [reply("malt")], WIDE) for t in (dated, written))
    assert a.prompt_ids.tolist() == b.prompt_ids.tolist()
    assert a.response_ids[0].tolist() == b.response_ids[0].tolist()
    assert encode_prompt(tokenizer, dated, user("hop?")) == encode_prompt(tokenizer, written, user("hop?"))
    (note,) = dated.notes(tokenizer)
    assert "always told 2024-07-26" in note
    assert not written.notes(tokenizer)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_is_what_stands_before_its_answers(name):
    """In our templates to the letter: else a part of the prompt would be trained and scored as if it were the answer."""
    tokenizer, template = get("built"), Template.named(name)
    head, *whole = template.render(tokenizer, user("a\n"), [reply("b"), reply("\nc")])
    assert all(text.startswith(head) for text in whole)
    assert [text[len(head) :].strip(" ") for text in whole] == ["b", "\nc"]
    assert not template.notes(tokenizer)


def test_a_template_that_goes_on_otherwise_is_noted():
    """transformers drops a line break behind a block."""
    source = "{% for m in messages %}{{ m['role'] }}:\n{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}\nassistant:{% endif %}"
    (note,) = Template(source.replace("\nassistant:", "Assistant:")).notes(get("built"))
    assert (
        note
        == "'Assistant:', with which the template ends a prompt, is not what it writes before an answer: there responses begin with 'assistant:\\na\\n'"
    )
    assert not Template(source).notes(get("built"))


def test_several_turns_need_a_chat_template():
    tokenizer = get("built")
    turns = [*user("a"), *reply("b"), *user("c")]
    with pytest.raises(UserError, match=r"use dialogue.*--data\.template"):
        encode_prompt_group(tokenizer, Template.of(None, tokenizer), turns, [reply("d")], WIDE)
    got = encode_prompt_group(tokenizer, Template.of("dialogue", tokenizer), turns, [reply("<s>")], WIDE)
    assert isinstance(got, Encoded)
    text = tokenizer.decode(np.concatenate([got.prompt_ids, got.response_ids[0]]))
    assert text.startswith("<s>User: a\n\nAssistant: b\n\nUser: c\n\nAssistant: <s>")


def test_a_system_turn_precedes_the_question():
    tokenizer = get("built")
    got = encode_prompt(
        tokenizer, Template.of(None, tokenizer), [{"role": "system", "content": "Be kind."}, *user("Why?")]
    )
    assert "Question: Be kind.\n\nWhy?\n\nAnswer:" in tokenizer.decode(got)


def test_mistakes_are_named(tmp_path):
    tokenizer = make_tokenizer()
    with pytest.raises(UserError, match="did you mean 'question'"):
        Template.of("questoin", tokenizer)
    with pytest.raises(UserError, match="once each"):
        Template.of("Q {prompt}", tokenizer)
    with pytest.raises(UserError, match="template file not found"):
        Template.of(str(tmp_path / "no.jinja"), tokenizer)
    (tmp_path / "half.txt").write_text("Q {prompt}")
    with pytest.raises(UserError, match="once each"):
        Template.of(str(tmp_path / "half.txt"), tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no EOS token"):
        encode_prompt_group(tokenizer, Template("{prompt}{response}"), user("a"), [reply("b")], WIDE)


def test_a_template_may_refuse_a_conversation_but_must_be_one():
    tokenizer = make_tokenizer()
    gemma = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    )
    prompt = [{"role": "system", "content": "Be brief."}, *user("Why?")]
    got = encode_prompt_group(tokenizer, Template(gemma), prompt, [reply("So.")], WIDE)
    assert got == Dropped("the template refuses it: System role not supported")
    assert isinstance(encode_prompt_group(tokenizer, Template(gemma), user("Why?"), [reply("So.")], WIDE), Encoded)
    with pytest.raises(UserError, match="refuses a prompt: System role not supported"):
        encode_prompt(tokenizer, Template(gemma), prompt)
    with pytest.raises(UserError, match=r"the chat template is no Jinja: .* \(line 1\)"):
        encode_prompt_group(tokenizer, Template("{% for m in %}{{ m }}"), user("Why?"), [reply("So.")], WIDE)


def test_where_a_template_writes_no_bos_there_is_none():
    """As Yi's and SmolLM2's: one is declared, and neither tokenizer nor template writes it."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    got = encode_prompt_group(tokenizer, Template(CHATML), user("Why?"), [reply("So.")], WIDE)
    text = tokenizer.apply_chat_template([*user("Why?"), *reply("So.")], tokenize=False)
    assert [*got.prompt_ids, *got.response_ids[0]] == tokenizer(text, add_special_tokens=False)["input_ids"][:-1]


def test_of_two_ends_the_first_is_trained():
    """As Phi-3's template writes them: `<|im_end|>`, a line break, and then EOS."""
    tokenizer = chatml()
    template = Template(CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}")
    got = encode_prompt_group(tokenizer, template, user("Why?"), [reply("So.")], WIDE)
    assert tokenizer.convert_ids_to_tokens(got.response_ids[0].tolist())[-1] == "<|im_end|>"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert got.response_ids[0].tolist().count(end) == 1
    assert end in stop_ids(tokenizer, template)


def test_of_several_chat_templates_the_default_one_is_the_tokenizers_own():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": TEMPLATES["dialogue"], "rag": "{{ documents }}"}
    assert Template.of(None, tokenizer).source == TEMPLATES["dialogue"]
    tokenizer.chat_template = {"tool_use": "{{ tools }}", "rag": "{{ documents }}"}
    with pytest.raises(UserError, match="several chat templates and no default one: tool_use, rag"):
        Template.of(None, tokenizer)


def test_control_tokens_in_a_format_string_are_letters_and_it_is_said():
    tokenizer = make_tokenizer()
    eos = tokenizer.eos_token
    (note,) = Template(f"Q: {{prompt}} A: {{response}}{eos}").notes(tokenizer)
    assert f"{eos} in it too" in note
    assert Template.named("question").notes(tokenizer) == []


def test_a_template_that_fails_on_a_text_drops_it_by_name():
    source = "{% for m in messages %}{{ m['content'] + (1 if 'bad' in m['content'] else '') }}{% endfor %}"
    found = encode_prompt_group(make_tokenizer(), Template(source), user("a bad text"), [reply("b")], Limits())
    assert isinstance(found, Dropped)
    assert found.reason.startswith("the template refuses it: TypeError")
