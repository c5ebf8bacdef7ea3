"""Text as a Gymnasium environment: what gymnasium's checker says, and the episodes by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from plaudit.data.tokenizer import Tokenizer
from plaudit.models.load import find_model
from plaudit.rollout.environment import AnyText, TextEnv, TurnEnv, open_environments
from plaudit.tensors import Sample
from plaudit.types import Message, Prompt, UserError

DIALOGUE = (Message("system", "be kind"), Message("user", "hi"))
PROMPTS: list[Prompt] = ["good morning", DIALOGUE]
END = 1


class Count:
    """A scorer: the tokens that were drawn, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Sample] = []

    def score(self, samples: Sequence[Sample]) -> list[float]:
        self.asked += samples
        return [float(sum(s.action_mask or (True,) * len(s.completion_ids))) for s in samples]


class GivesNaN:
    def score(self, samples: Sequence[Sample]) -> list[float]:
        return [math.nan for _ in samples]


def louder(messages: tuple[Message, ...]) -> str | None:
    """Says how many messages there are, and nothing after the seventh."""
    return f"louder {len(messages)}" if len(messages) < 7 else None


def tokenizer() -> Tokenizer:
    return Tokenizer.load(find_model("tiny"))


def token_env(**settings: Any) -> TextEnv:
    return TextEnv(tokenizer(), PROMPTS, Count(), **({"turn_tokens": 4, "context": 64} | settings))


def turn_env(**settings: Any) -> TurnEnv:
    return TurnEnv(tokenizer(), PROMPTS, Count(), **({"turn_tokens": 4, "context": 64} | settings))


@pytest.fixture
def registered() -> Iterator[Callable[..., str]]:
    """Registers an environment for the time of a test; its id."""
    names: list[str] = []

    def register(make: Callable[..., Any], **settings: Any) -> str:
        names.append(f"plaudit/Text{len(names)}-v0")
        gymnasium.register(names[-1], entry_point=make, kwargs=settings)
        return names[-1]

    yield register
    for name in names:
        del gymnasium.registry[name]


@pytest.mark.parametrize("make", [token_env, turn_env])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"turns": 3, "respond": louder},
        {"turns": 3, "respond": louder, "per_turn": True},
        {"turn_tokens": 1},
    ],
    ids=["one turn", "turns", "rewards a turn", "a token"],
)
def test_gymnasiums_own_checker_finds_nothing(
    registered: Callable[..., str], make: Callable[..., Any], settings: dict[str, Any]
) -> None:
    """Warnings are errors here; with a spec, the checker renders, too."""
    env = gymnasium.make(registered(make, **settings), render_mode="ansi", disable_env_checker=True)
    check_env(env.unwrapped)


def test_a_turn_by_hand() -> None:
    env = token_env(render_mode="ansi")
    words = env.tokenizer
    ids = words.encode("good morning")
    observed, info = env.reset(options={"prompt": 0})
    assert observed["ids"][: observed["length"]].tolist() == ids
    assert set(observed["ids"][len(ids) :].tolist()) == {env.vocab}, "no token has the id of nothing"
    assert info == {"turn": 0}
    hope = words.encode(" hope")
    assert len(hope) == 1
    observed, reward, *over, info = env.step(np.int64(hope[0]))
    assert observed["ids"][: observed["length"]].tolist() == [*ids, *hope]
    assert (reward, over, info) == (0.0, [False, False], {"turn": 0})
    assert env.render() == "user: good morning\nassistant:  hope"
    observed, reward, *over, info = env.step(np.int64(END))
    assert (reward, over, info["turn"]) == (2.0, [True, False], 1)
    sample = info["sample"]
    assert sample.prompt_ids == tuple(ids)
    assert sample.completion_ids == (*hope, END)
    assert (sample.text, sample.finish_reason, sample.action_mask) == (" hope", "stop", None)
    assert all(map(math.isnan, sample.logprobs)), "nobody told the environment"
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(END))


def test_three_turns_by_hand() -> None:
    """Between turns stand the template's marks and the reply; a turn that did not close itself is closed for it."""
    env = token_env(turns=3, respond=louder, render_mode="ansi")
    words = env.tokenizer
    (hope,) = words.encode(" hope")
    env.reset(options={"prompt": 1})
    rewards = []
    for action in (hope, END, hope, hope, hope, hope, END):
        observed, reward, terminated, truncated, info = env.step(np.int64(action))
        rewards.append(reward)
    assert rewards == [0, 0, 0, 0, 0, 0, 7]
    assert (terminated, truncated) == (True, False)
    sample = info["sample"]
    assert words.inner.decode(sample.prompt_ids) == "<|system|>be kind<|end|><|user|>hi<|end|><|assistant|>"
    said = words.inner.decode(sample.completion_ids)
    assert said == (
        " hope<|end|><|user|>louder 3<|end|><|assistant|>"
        " hope hope hope hope<|end|><|user|>louder 5<|end|><|assistant|>"
        "<|end|>"
    )
    drawn = [token for token, mine in zip(sample.completion_ids, sample.action_mask, strict=True) if mine]
    assert drawn == [hope, END, hope, hope, hope, hope, END]
    assert sample.text == " hope\n hope hope hope hope\n"
    seen = observed["ids"][: observed["length"]].tolist()
    assert seen == [*sample.prompt_ids, *sample.completion_ids]
    assert env.render() == (
        "system: be kind\nuser: hi\nassistant:  hope\nuser: louder 3\nassistant:  hope hope hope hope\n"
        "user: louder 5\nassistant: "
    )


def test_plain_text_is_joined_as_it_stands() -> None:
    env = token_env(turns=2, respond=lambda messages: " and " + messages[0].content)
    (hope,) = env.tokenizer.encode(" hope")
    env.reset(options={"prompt": 0})
    for action in (hope, hope, hope, hope, hope, END):
        *_, info = env.step(np.int64(action))
    assert env.tokenizer.inner.decode(info["sample"].completion_ids) == (
        " hope hope hope hope and good morning hope<|end|>"
    )


@pytest.mark.parametrize("make", [token_env, turn_env])
def test_a_reward_a_turn_sums_to_the_reward_at_the_end(make: Callable[..., Any]) -> None:
    """Each turn's is what it adds to the score: 4, 4 and 4 tokens (or 3 and the end of text)."""

    def rewards(**settings: Any) -> list[float]:
        env: Any = make(turns=3, respond=louder, **settings)
        env.reset(seed=3)
        action = env.tokenizer.encode(" hope")[0] if make is token_env else " hope hope hope"
        found: list[float] = []
        while True:
            _, reward, terminated, _, _ = env.step(action)
            found += [reward] if reward else []
            if terminated:
                return found

    assert rewards(per_turn=True) == [4.0, 4.0, 4.0]
    assert rewards() == [12.0]


def test_the_other_side_ends_an_episode() -> None:
    env = turn_env(turns=9, respond=louder)
    env.reset(options={"prompt": 1})
    said = []
    while True:
        words, reward, terminated, truncated, _ = env.step(" hope")
        said.append(words)
        if terminated or truncated:
            break
    assert said == ["louder 3", "louder 5", ""]
    assert (reward, terminated, truncated) == (6.0, True, False)


def test_a_turn_of_text_is_its_tokens_and_the_end_of_text() -> None:
    """The same episode in words and in tokens; what is too long is cut at turn_tokens."""
    by_turns, by_tokens = turn_env(turns=2, respond=louder), token_env(turns=2, respond=louder)
    by_turns.reset(options={"prompt": 1})
    by_tokens.reset(options={"prompt": 1})
    (hope,) = by_tokens.tokenizer.encode(" hope")
    by_turns.step(" hope hope hope hope hope")
    *_, in_words = by_turns.step(" hope")
    for action in (hope, hope, hope, hope, hope, END):
        *_, in_tokens = by_tokens.step(np.int64(action))
    assert in_words == in_tokens


def test_what_is_observed_in_words_is_the_prompt_then_the_replies() -> None:
    env = turn_env(turns=2, respond=louder, render_mode="ansi")
    assert env.reset(options={"prompt": 0}) == ("good morning", {"turn": 0, "dialogue": "good morning"})
    said, info = env.reset(options={"prompt": 1})
    assert said == "hi"
    assert info["dialogue"] == [
        {"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}
    ]  # fmt: skip
    assert env.step(" hope")[0] == "louder 3"
    assert env.render() == "system: be kind\nuser: hi\nassistant:  hope\nuser: louder 3"


@pytest.mark.parametrize("make", [token_env, turn_env])
def test_a_seed_is_a_start(make: Callable[..., Any]) -> None:
    def begun(env: Any, seed: int | None) -> str:
        env.reset(seed=seed)
        return str((env if isinstance(env, TextEnv) else env.tokens).prompt)

    one, other = make(), make()
    for seed in (5, None, None, None, 7, None):
        assert begun(one, seed) == begun(other, seed)
    assert len({begun(one, seed) for seed in range(20)}) == 2


@pytest.mark.parametrize(
    ("context", "ends"),
    # The dialogue has 10 tokens; two are drawn, and the marks and "louder 3" have 8.
    [(20, [(False, True)]), (21, [(False, False), (False, True)]), (22, [(False, False), (False, False)])],
)
def test_a_full_context_truncates(context: int, ends: list[tuple[bool, bool]]) -> None:
    """Where the reply and one token more do not fit; or in the middle of a turn."""
    env = token_env(turns=3, respond=louder, context=context)
    words = env.tokenizer
    reply = words.encode("<|user|>louder 3<|end|><|assistant|>")
    (hope,) = words.encode(" hope")
    assert (len(words.render(DIALOGUE)), len(reply)) == (10, 8), "the numbers above"
    env.reset(options={"prompt": 1})
    env.step(np.int64(hope))
    found = []
    for action in (END, hope)[: len(ends)]:
        observed, reward, terminated, truncated, info = env.step(np.int64(action))
        found.append((terminated, truncated))
    assert found == ends
    if truncated:
        assert info["sample"].finish_reason == "length"
        assert info["sample"].completion_ids[-1] == action, "a reply that does not fit was never heard"
        assert reward == 2.0 + (action == hope)
        assert observed["length"] <= context


def fails(messages: tuple[Message, ...]) -> str:
    raise LookupError(f"no answer to {len(messages)}")


def exits(messages: tuple[Message, ...]) -> str:
    raise SystemExit(len(messages))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"respond": fails}, r"respond: failed \(LookupError: no answer to 3\)"),
        ({"respond": exits}, r"respond: failed \(SystemExit: 3\)"),
        ({"respond": lambda messages: len(messages)}, r"respond: gave int, not text or None"),
        ({"respond": lambda _: "\ud83d"}, r"respond: what it said holds half a character \(\\ud83d\); write"),
    ],
    ids=["raises", "exits", "no text", "half"],
)
def test_faults_of_the_other_side_are_named(settings: dict[str, Any], message: str) -> None:
    env = turn_env(turns=2, **settings)
    env.reset(options={"prompt": 1})
    with pytest.raises(UserError, match=message):
        env.step("hope")


def test_a_score_that_is_no_number_is_refused() -> None:
    env = TurnEnv(tokenizer(), PROMPTS, GivesNaN())
    env.reset()
    with pytest.raises(UserError, match="scorer: gave the score nan, which is not"):
        env.step("hope")


class Says:
    """A scorer that says what it is told to, or raises it."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def score(self, _: Sequence[Sample]) -> Any:
        if isinstance(self.said, BaseException):
            raise self.said
        return self.said


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (LookupError("no model"), r"^scorer: failed \(LookupError: no model\)"),
        (SystemExit(3), r"^scorer: failed \(SystemExit: 3\)"),
        (UserError("holds no rows", where="answers.jsonl"), "^answers.jsonl: holds no rows"),
        ([1.0, 2.0], "^scorer: gave 2 scores for one sample"),
        ([], "^scorer: gave 0 scores for one sample"),
        ([None], r"^scorer: failed \(TypeError: "),
        (None, r"^scorer: failed \(TypeError: "),
    ],
    ids=["raises", "exits", "says what is wrong", "two", "none", "no number", "nothing"],
)
def test_faults_of_the_scorer_are_named(said: Any, message: str) -> None:
    env = TurnEnv(tokenizer(), PROMPTS, Says(said))
    env.reset()
    with pytest.raises(UserError, match=message):
        env.step("hope")


@pytest.mark.parametrize("number", [2, -1, "0", 0.5])
@pytest.mark.parametrize("make", [token_env, turn_env])
def test_a_prompt_that_there_is_not_is_refused(make: Callable[..., Any], number: Any) -> None:
    with pytest.raises(UserError, match=f"options: there is no prompt {number!r}; give 0 to 1"):
        make().reset(options={"prompt": number})


@pytest.mark.parametrize("action", [714, -1, "hope", 0.5])
def test_what_is_no_token_is_refused(action: Any) -> None:
    env = token_env()
    env.reset()
    assert env.vocab == 714
    with pytest.raises(gymnasium.error.InvalidAction):
        env.step(action)


def test_an_output_layer_wider_than_the_tokenizer_is_told() -> None:
    env = token_env(vocab=720)
    env.reset()
    env.step(np.int64(715))
    with pytest.raises(gymnasium.error.InvalidAction):
        env.step(np.int64(720))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"turns": 2}, "nobody responds"), ({"turns": 0}, "one or more"), ({"turn_tokens": 0}, "one or more")],
)
def test_settings_that_make_no_episode_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_env(**settings)


def test_a_prompt_without_room_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"prompt 2: has 10 tokens; with a turn of 4 the context of 13 is full"
    ):
        token_env(context=13)


def test_any_text_is_a_text() -> None:
    space = AnyText(5)
    space.seed(0)
    assert "né\n中" in space
    assert "" in space
    assert "123456" not in space
    assert 5 not in space
    assert all(space.sample() in space for _ in range(20))


def test_gymnasiums_vector_environment_runs_them() -> None:
    envs = gymnasium.vector.SyncVectorEnv([lambda: token_env(turns=2, respond=louder) for _ in range(3)])
    observed, _ = envs.reset(seed=0)
    assert observed["ids"].shape == (3, 64)
    lengths = observed["length"].tolist()
    observed, rewards, *_ = envs.step(np.array([5, 5, END]))
    assert observed["length"].tolist()[:2] == [lengths[0] + 1, lengths[1] + 1]
    assert observed["length"][2] > lengths[2] + 1, "its turn is over, and it was answered"
    assert rewards.tolist() == [0, 0, 0]


def test_environments_are_opened_by_name(registered: Callable[..., str]) -> None:
    games = open_environments("games:Guess", 3)
    assert [type(game).__name__ for game in games] == ["Guess"] * 3
    assert len(set(map(id, games))) == 3
    (made,) = open_environments(registered(turn_env), 1)
    assert isinstance(made.unwrapped, TurnEnv)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("games:Nothing", r"environment games:Nothing: cannot be made"),
        ("nowhere:Guess", r"cannot be made \(ModuleNotFoundError: No module named 'nowhere'\)"),
        ("NoSuchGame-v0", r"environment NoSuchGame-v0: cannot be made"),
        ("games:NOT_AN_ENVIRONMENT", r"cannot be made \(TypeError"),
        ("games:no_environment", r"gave int, not a gymnasium.Env"),
        ("games:exits", r"cannot be made \(SystemExit: 0\)"),
        ("games:cannot_be_made", r"cannot be made \(OSError: no display\)"),
    ],
)
def test_what_is_no_environment_is_named(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_environments(spec, 1)
