"""`janus generate --chat`, and several pictures: the prompts of training, and what users see of mistakes."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from commands import invoke, refusal
from PIL import Image
from trainer_shards import SIDE, TOKENS, make_loud_model, word_tokenizer

from janus.cli import main
from janus.generate.chat import read_chats
from janus.prompts import Message, before_answer, encode_samples
from pipelines.forms.conversation import conversation
from pipelines.stages.rules import pieces_of

COLOURS = {"a.png": (250, 30, 10), "b.png": (20, 40, 240), "c.png": (90, 200, 90)}


def picture(name: str) -> dict[str, str]:
    return {"type": "image", "image": name}


def said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def user(*parts: object) -> dict[str, object]:
    return {"role": "user", "content": [*parts]}


def assistant(text: str) -> dict[str, object]:
    return {"role": "assistant", "content": text}


CONVERSATIONS = {
    "text": [user(said("w1"))],
    "picture at the end of the first turn": [user(said(" w1 w2\n"), picture("a.png"))],
    "pictures between texts": [user(picture("b.png"), said("w1"), picture("a.png"), said("w2"))],
    "a picture in a later turn": [user(said("w1")), assistant("w2"), user(said("w3"), picture("c.png"))],
    "a system text": [{"role": "system", "content": "w9"}, user(picture("a.png"), said("w1"))],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose logits are far apart; pictures beside it."""
    base = tmp_path_factory.mktemp("model")
    large = make_loud_model(base)
    noise = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3)).astype(np.uint8)
    for name, pixels_HWC in zip(COLOURS, noise, strict=True):
        Image.fromarray(pixels_HWC).save(base / name)
    return large


def write_chat(folder: Path, *rows: object) -> Path:
    """A file of conversations beside the pictures."""
    path = folder / "chat.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


@pytest.mark.parametrize("draw", [False, True], ids=["answered", "drawn"])
@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_prompt_is_what_training_sees_before_the_answer(tmp_path: Path, turns: list, draw: bool) -> None:
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(tmp_path / name)
    (asked,) = read_chats(write_chat(tmp_path, {"messages": turns, "draw": draw}))
    shown = [Path(path).name for message in asked.messages for path in message.pictures]
    answer = {"role": "assistant", "content": [picture("b.png")] if draw else "w7"}
    pieces = pieces_of(conversation([*turns, answer], "messages", tmp_path, True))
    trained = [Message(p.role, p.text, [str(one.value) for one in p.pictures]) for p in pieces]
    assert shown == [name for message in trained[:-1] for name in message.pictures]
    both = [[*asked.messages, trained[-1]], trained]
    prompts = [
        before_answer(sample.input_ids, sample.supervised, word_tokenizer().special).tolist()
        for sample in encode_samples(word_tokenizer(), both, TOKENS)
    ]
    assert prompts[0] == prompts[1]
    special = word_tokenizer().special
    assert (prompts[0][-1] == special.begin_of_image) is draw
    assert prompts[0].count(special.image_placeholder) == TOKENS * len(shown)


_run = partial(invoke, main, "generate")


def test_conversations_are_answered_as_the_same_prompts_are(folder: Path, tmp_path: Path) -> None:
    """One file holds an edit, a question about two pictures, and an edit of both."""
    both = (picture("a.png"), picture("b.png"), said("w1 w2"))
    rows = [
        {"messages": [user(said("w3"), picture("a.png"))], "draw": True},
        {"messages": [user(*both)]},
        {"messages": [user(*both)], "draw": True},
    ]
    options = ("--batch", 1, "--max-tokens", 5)
    chat = write_chat(folder.parent, *rows)
    told = _run(folder, "--chat", chat, *options, "--out", tmp_path / "chat").stdout.splitlines()
    pictures = sorted((tmp_path / "chat").iterdir(), key=lambda path: path.name[-7:])
    assert [Path(line) for line in told[1:]] == pictures
    shown = [argument for name in ("a.png", "b.png") for argument in ("--image", folder.parent / name)]
    asked = ("--prompt", "w1 w2")
    assert _run(folder, *asked, *shown, *options).stdout.splitlines() == told[:1]
    turned = [argument for name in ("b.png", "a.png") for argument in ("--image", folder.parent / name)]
    assert _run(folder, *asked, *turned, *options).stdout.splitlines() != told[:1]
    _run(folder, "--draw", "w3", *shown[:2], *options, "--out", tmp_path / "one")
    (alone,) = (tmp_path / "one").iterdir()
    assert (alone.name, alone.read_bytes()) == (pictures[0].name, pictures[0].read_bytes())
    assert [Image.open(path).text["prompt"] for path in pictures] == ["w3", "w1 w2"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "chat.jsonl:2: not a line of JSON"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "chat.jsonl:2: not a line of JSON"),
        ("[]", "chat.jsonl:2: expected"),
        ({"messages": "w1"}, "chat.jsonl:2: expected"),
        ({"messages": ["w1"]}, "chat.jsonl:2: expected"),
        ({"messages": []}, "chat.jsonl:2: expected user and assistant in turn, the user last, got none"),
        ({"messages": [user(said("w1")), assistant("w2")]}, "the user last, got user, assistant"),
        ({"messages": [user(said("w1")), user(said("w2"))]}, "the user last, got user, user"),
        ({"messages": [assistant("w2"), user(said("w2"))]}, "the user last, got assistant, user"),
        ({"messages": [{"role": "tool", "content": "w1"}]}, "the user last, got tool"),
        ({"messages": [user(said("w1"))], "images": ["a.png"]}, "chat.jsonl:2: images is not read; pictures"),
        ({"messages": [user(said("w1"))], "draw": "yes"}, "chat.jsonl:2: draw is 'yes', expected true"),
        ({"messages": [user(said(" "))]}, "chat.jsonl:2: messages[0].content: has no text"),
        ({"messages": [user(picture("a.png"))]}, "chat.jsonl:2: messages[0].content: has no text"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content: 7 is neither a text nor"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: None is neither a text nor"),
        ({"messages": [user({"type": "audio"})]}, "{'type': 'audio'} is neither a text nor a picture"),
        ({"messages": [user(picture("absent.png"), said("w1"))]}, "absent.png: no such file; give its path"),
        ({"messages": [user(picture("https://a.b/c.png"), said("w1"))]}, "https://a.b/c.png: no such file"),
        (
            {
                "messages": [
                    user(said("w1")),
                    {"role": "assistant", "content": [picture("a.png")]},
                    user(said("w2")),
                ]
            },
            "chat.jsonl:2: messages[1].content: only pictures of the user can be read",
        ),
    ],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path: Path, row: object, says: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    chat = write_chat(tmp_path, {"messages": [user(said("w1"))]}, row)
    assert says in refusal(main, "generate", tmp_path, "--chat", chat)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--chat", "absent.jsonl"], "absent.jsonl: No such file"),
        (["--chat", "empty.jsonl"], "empty, expected a conversation on each line"),
        (["--chat", "latin.jsonl"], "not UTF-8"),
        (["--chat", "empty.jsonl", "--prompt", "w1"], "either --prompt"),
        (["--chat", "empty.jsonl", "--image", "a.png"], "--image goes with --prompt and --draw"),
    ],
)
def test_a_file_that_cannot_be_asked_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n \n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"messages": "\xe9"}')
    assert says in refusal(main, "generate", tmp_path, *arguments)
