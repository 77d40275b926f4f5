"""Conversations: read from rows, rendered by chat templates, learned on assistants' turns alone."""

import json

import numpy as np
import pytest
from tokenizers import decoders

from lensjax.core.errors import InputError
from lensjax.tasks.chat import chat_remark
from lensjax.tasks.target_bytes import target_bytes
from lensjax.tasks.task import fingerprint, load_task
from lensjax.tasks.tokens import tokenise

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA2 = (  # folds the system turn by itself, trims, and ends turns with white space and the end-of-text token
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system %}{% set c = '<<SYS>>' + system + '<</SYS>>' + m['content'] %}"
    "{% else %}{% set c = m['content'] %}{% endif %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}{% else %}{{ ' ' + c.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
GEMMA = (  # refuses system turns
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + m['role'] + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}"
)
DROPS = "{% for m in messages if m['role'] != 'system' %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
THINKS = "{% for m in messages %}{{ m['role'] + ': ' + m['content'].split('</think>')[-1] + eos_token }}{% endfor %}"
DATED = "{{ strftime_now('%d %b %Y') + '\\n' }}" + CHATML
TEMPLATES = {"chatml": CHATML, "llama2": LLAMA2, "gemma": GEMMA, "drops": DROPS, "dated": DATED, "plain": None}

TURNS = [
    {"role": "system", "content": "be one "},
    {"role": "user", "content": "one two"},
    {"role": "assistant", "content": " three four\n"},
    {"role": "user", "content": [{"type": "text", "text": "two "}, {"type": "text", "text": "five"}]},
    {"role": "assistant", "content": "¿seis? é"},
]
ANSWERS = ["three four", "¿seis? é"]
WHOLE = {
    "chatml": "<|im_start|>system\nbe one <|im_end|>\n<|im_start|>user\none two<|im_end|>\n<|im_start|>assistant\n"
    "[three four<|im_end|>]\n<|im_start|>user\ntwo five<|im_end|>\n<|im_start|>assistant\n[¿seis? é<|im_end|>]",
    "llama2": "<s>[INST] <<SYS>>be one <</SYS>>one two [/INST][ three four </s>]"
    "<s>[INST] two five [/INST] [¿seis? é </s>]",
    "gemma": "<s><start_of_turn>user\nbe one \n\none two<end_of_turn>\n<start_of_turn>assistant\n"
    "[three four<end_of_turn>]\n<start_of_turn>user\ntwo five<end_of_turn>\n<start_of_turn>assistant\n"
    "[¿seis? é<end_of_turn>]",
    "drops": "user: be one \n\none two\nassistant:[ three four]\nuser: two five\nassistant: [¿seis? é</s>]",
    "plain": "<s>be one \n\nUser: one two\n\nAssistant:[ three four</s>]\n\nUser: two five\n\n"
    "Assistant: [¿seis? é</s>]",
}
WHOLE["dated"] = "26 Jul 2024\n" + WHOLE["chatml"]


@pytest.fixture
def chat_tokenizer(make_tokenizer):
    """Makes a tokenizer with one of the templates and its marks as special tokens."""

    def make(name):
        tokenizer = make_tokenizer("<s> $A" if name == "plain" else None, bos_token="<s>", pad_token="<pad>")
        tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]}
        )
        tokenizer.backend_tokenizer.decoder = decoders.ByteLevel()
        tokenizer.chat_template = TEMPLATES.get(name, name)
        return tokenizer

    return make


@pytest.fixture
def examples(save_jsonl, make_spec):
    """The spec and the test examples of rows, in their order."""

    def make(rows, **fields):
        other = [*TURNS[:4], {"role": "assistant", "content": "five"}]
        save_jsonl("train.jsonl", [{fields.get("messages", "messages"): other}])
        save_jsonl("test.jsonl", rows)
        limits = {"validation": 1, "test": len(rows), "prompt": "", "target": ""}
        spec = make_spec(**limits | fields)
        rows = {example.where: example for example in load_task(spec).test}
        return spec, [rows[where] for where in sorted(rows)]

    return make


def shown(tokenizer, tokens, i=0):
    """An example's tokens as text, learned ones in brackets."""
    ids = np.concatenate([tokens.prompt(i), tokens.target(i)])
    learned = np.concatenate([np.zeros(tokens.prompt_lengths[i], bool), tokens.learned_of(i)])
    parts = np.split(ids, np.flatnonzero(np.diff(learned)) + 1)
    texts = [tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in parts]
    return "".join(f"[{text}]" if at % 2 else text for at, text in enumerate(texts))


@pytest.mark.parametrize("name", TEMPLATES)
def test_assistants_turns_are_learned_and_all_else_is_read(name, chat_tokenizer, examples):
    tokenizer = chat_tokenizer(name)
    spec, rows = examples([{"messages": TURNS}])
    tokens = tokenise(rows, tokenizer, spec, encoder_decoder=False)
    assert shown(tokenizer, tokens) == WHOLE[name]
    assert target_bytes(rows, tokens, tokenizer, encoder_decoder=False) == [sum(len(a.encode()) for a in ANSWERS)]
    said = chat_remark(tokenizer, rows, encoder_decoder=False)
    assert ("no chat template" in said, "no system turn" in said) == (name == "plain", name in ("gemma", "drops"))


def test_an_encoder_decoder_learns_the_same_turns_each_in_a_row(chat_tokenizer, examples):
    tokenizer = chat_tokenizer("chatml")
    spec, rows = examples([{"messages": TURNS}, {"messages": TURNS[:3]}, {"messages": TURNS}])
    tokens = tokenise(rows, tokenizer, spec, encoder_decoder=True)
    assert (len(tokens), tokens.examples, tokens.firsts.tolist()) == (5, 3, [True, False, True, True, False])
    pairs = [tuple(tokenizer.decode(part(i)) for part in (tokens.prompt, tokens.target)) for i in range(5)]
    first = ("be one \n\nUser: one two\n\nAssistant:", "three four</s>")
    second = (f"{first[0]} three four\n\nUser: two five\n\nAssistant:", "¿seis? é</s>")
    assert pairs == [first, second, first, first, second]
    sizes = target_bytes(rows, tokens, tokenizer, encoder_decoder=True)
    causal = tokenise(rows, tokenizer, spec, encoder_decoder=False)
    assert sizes == target_bytes(rows, causal, tokenizer, encoder_decoder=False)
    assert [len(tokens.take(n)) for n in (0, 1, 2, 3, 9)] == [0, 2, 3, 5, 5]
    assert tokens.take(2).examples == 2
    np.testing.assert_array_equal(tokens.by_example(np.arange(10).reshape(2, 5)), [[1, 2, 7], [11, 7, 17]])
    assert tokens.by_example(np.array([False, True, False, False, False])).tolist() == [True, False, False]
    assert "learns the answer" in chat_remark(tokenizer, rows, encoder_decoder=True)
    # A cut turn of which nothing tells how many bytes are left makes those of the whole conversation unknown.
    spec, rows = examples([{"messages": TURNS}], max_target_tokens=7)
    tokens = tokenise(rows, tokenizer, spec, encoder_decoder=True)
    assert tokens.target_cut.tolist() == [False, True]
    (left,) = target_bytes(rows, tokens, tokenizer, encoder_decoder=True)
    assert len(b"three four") < left < sum(len(answer.encode()) for answer in ANSWERS)


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [{"from": "human", "value": "one two"}, {"from": "gpt", "value": "three four"}]},
        {"messages": {"role": ["user", "assistant"], "content": ["one two", "three four"]}},
        {"messages": json.dumps([{"role": "user", "content": "one two"}, {"role": "model", "content": "three four"}])},
        {"messages": [*TURNS[1:3], {"role": "user", "content": "thanks"}], "tools": [], "images": None},
        {"messages": [{**turn, "tool_calls": None, "name": "x"} for turn in TURNS[1:3]]},
        {"dialogue": TURNS[1:3]},
    ],
)
def test_every_form_of_a_conversation_is_the_same(row, examples):
    _, (wanted,) = examples([{"messages": TURNS[1:3]}])
    _, (found,) = examples([row], **({"messages": "dialogue"} if "dialogue" in row else {}))
    assert (found.turns, fingerprint([found])) == (wanted.turns, fingerprint([wanted]))


def test_a_turn_of_weight_0_is_read_and_not_learned(chat_tokenizer, examples):
    turns = [{**turn, "weight": 0} if at == 2 else turn for at, turn in enumerate(TURNS)]
    spec, rows = examples([{"messages": turns}])
    tokens = tokenise(rows, chat_tokenizer("chatml"), spec, encoder_decoder=False)
    assert shown(chat_tokenizer("chatml"), tokens).count("[") == 1
    assert rows[0].learned == (ANSWERS[1],)


@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_long_conversations_are_cut_in_their_texts_and_bytes_count_what_is_left(name, chat_tokenizer, examples):
    tokenizer = chat_tokenizer(name)
    turns = [{"role": "user", "content": "one two " * 30}, *TURNS[2:]]
    limits = {"max_prompt_tokens": 20, "max_target_tokens": 30}
    spec, rows = examples([{"messages": turns}], **limits)
    tokens = tokenise(rows, tokenizer, spec, encoder_decoder=False)
    assert (tokens.prompt_lengths[0], tokens.target_lengths[0]) == (20, 30)
    assert (tokens.prompt_cut[0], tokens.target_cut[0]) == (True, True)
    text = shown(tokenizer, tokens)
    assert ("<|im_end|>\n<|im_start|>assistant\n[" if name == "chatml" else "\n\nAssistant:[") in text
    kept = text.rpartition("[")[2].rstrip("]")
    left = ANSWERS[0] + (kept if kept in ANSWERS[1] else "")
    assert target_bytes(rows, tokens, tokenizer, encoder_decoder=False) == [len(left.encode())]


SURROGATE = json.dumps([{"role": "user", "content": "\ud800"}])
BAD = {
    "tool role": ([*TURNS, {"role": "tool", "content": "1"}], r"holds tool calls \(messages\[5\].role is 'tool'\)"),
    "tool calls": ([{"role": "assistant", "tool_calls": [{}]}], r"holds tool calls \(messages\[0\].tool_calls\)"),
    "image": ([{"role": "user", "content": [{"type": "image"}]}], r"more than text \(messages\[0\].content\[0\].type"),
    "role": ([{"role": "judge", "content": "a"}], r"has the role 'judge' in messages\[0\]; the roles are"),
    "no role": ([{"content": "a"}], r"has no role in messages\[0\]"),
    "empty": ([{"role": "user", "content": None}, TURNS[2]], r"has an empty messages\[0\].content; fill it in"),
    "blank": ([TURNS[1], {"role": "assistant", "content": " "}], r"blank turn of an assistant in messages\[1\]"),
    "no answer": ([TURNS[1]], "no assistant's turn to learn in 'messages'; add one"),
    "not turns": (["one"], r"holds a str in messages\[0\]; write each turn as in"),
    "not a list": (7, "holds a int in the field 'messages'; conversations are lists"),
    "half a character": (SURROGATE, r"half a character in the messages\[0\].content"),
    "weight": ([TURNS[1], {**TURNS[2], "weight": 0.5}], r"has the weight 0.5 in messages\[1\]"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_a_conversation_of_texts_is_refused_in_one_sentence(kind, examples):
    messages, said = BAD[kind]
    with pytest.raises(InputError, match=said) as raised:
        examples([{"messages": messages}])
    assert "test.jsonl line 1" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_rows_with_tools_or_without_conversations_are_refused(examples):
    with pytest.raises(InputError, match=r"line 1 holds tool calls \(tools\)"):
        examples([{"messages": TURNS, "tools": [{"name": "search"}]}])
    with pytest.raises(InputError, match=r"line 1 has no 'messages' or 'conversations', only a; name the field"):
        examples([{"a": 1}])


@pytest.mark.parametrize(
    ("template", "turns", "said"),
    [
        (
            "llama2",
            [TURNS[1], TURNS[1], TURNS[2]],
            "cannot be rendered by the chat template of .*: it says 'Roles must",
        ),
        (
            THINKS,
            [TURNS[1], {"role": "assistant", "content": "<think>a</think>b"}],
            "leaves out or changes a part",
        ),
        ("{{ messages[0]['content'] }}", TURNS[1:3], "it drops or repeats turns; mend the row, or choose"),
    ],
)
def test_what_a_template_cannot_write_is_refused_in_one_sentence(template, turns, said, chat_tokenizer, examples):
    spec, rows = examples([{"messages": turns}])
    with pytest.raises(InputError, match=said):
        tokenise(rows, chat_tokenizer(template), spec, encoder_decoder=False)
