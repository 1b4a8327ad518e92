"""The recorder and the pair it records: exact against the plain way, resumable to the byte, lossless under any rule."""

from __future__ import annotations

import json
import sysconfig
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from traces import record, train_pair, training_text
from traces.lossless import Decoded, Rule, decode, verify
from traces.model_pair import Pair, answers, distribution, record_request, statistics
from wisp_gym.cli import run
from wisp_gym.errors import InputError
from wisp_gym.traces.speculation import read_speculation_trace, replay

TEXT = Path(sysconfig.get_path("stdlib")) / "asyncio"
K, N = 4, 24
SMALL = [
    *("--text", str(TEXT), "--vocabulary", "400", "--batch", "2", "--block", "32", "--prompts", "10"),
    *("--target-hidden", "32", "--target-layers", "2", "--target-intermediate", "48", "--dtype", "float32"),
    *("--draft-hidden", "16", "--draft-layers", "1", "--draft-heads", "2", "--draft-intermediate", "24"),
    *("--target-steps", "40", "--draft-steps", "20", "--save-every", "10"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair of models of some thousand parameters, trained for a second."""
    out = tmp_path_factory.mktemp("pair")
    train_pair.main(["--out", str(out), *SMALL])
    short = [json.loads(line)["prompt"][:60] for line in (out / "prompts.jsonl").read_text().splitlines()]
    (out / "short.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in short))
    return out


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    return Pair.load(str(folder / "draft"), str(folder / "target"))


def flags(folder: Path, out: Path, *more: str) -> list[str]:
    names = (
        "--draft",
        str(folder / "draft"),
        "--target",
        str(folder / "target"),
        "--prompts",
        str(folder / "short.jsonl"),
    )
    return [*names, "--out", str(out), "--draft-tokens", str(K), "--max-new-tokens", str(N), *more]


def settings(temperature: float = 0.0, batch: int = 7, k: int = K) -> Namespace:
    return Namespace(temperature=temperature, batch=batch, draft_tokens=k, max_new_tokens=N, seed=3)


def prompts(folder: Path) -> list[str]:
    return [json.loads(line)["prompt"] for line in (folder / "short.jsonl").read_text().splitlines()]


@torch.inference_mode()
def logits_after(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """(1, V) logits of the next token, without any cache."""
    return model(torch.tensor([list(ids)])).logits[:, -1]


def greedy_answer(pair: Pair, ids: list[int], tokens: int) -> list[int]:
    """The target's greedy answer, one whole forward a token."""
    output: list[int] = []
    while len(output) < tokens and not pair.end_tokens & set(output):
        output.append(int(logits_after(pair.target, ids + output).argmax()))
    return output


def test_the_draft_is_much_smaller_and_both_have_learned(folder: Path) -> None:
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["target"]["parameters"] > 2 * recipe["draft"]["parameters"]
    assert recipe["target"]["validation_loss_nats"] < np.log(400) - 0.3  # uniform guesses have ln 400
    assert recipe["licence"].startswith("PSF-2.0")
    assert not list(folder.rglob("*.pt")) + list(folder.rglob("*.bin"))


def test_training_that_is_cut_off_goes_on_to_the_same_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(tokens: np.ndarray, step: int, given: Namespace) -> torch.Tensor:
        if step == 25:
            raise KeyboardInterrupt
        return batch_at(tokens, step, given)

    batch_at = train_pair.batch_at
    with monkeypatch.context() as patch:
        patch.setattr(train_pair, "batch_at", cut_off)
        assert run(train_pair.main, "train_pair", ["--out", str(tmp_path), *SMALL]) == 130
    assert not (tmp_path / "recipe.json").exists()
    train_pair.main(["--out", str(tmp_path), *SMALL])
    for name in ("target/model.safetensors", "draft/model.safetensors", "prompts.jsonl", "recipe.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_prompts_are_cut_from_held_out_files_alone(folder: Path) -> None:
    texts, held_out = training_text.split_text([TEXT])
    for line in (folder / "prompts.jsonl").read_text().splitlines():
        prompt = json.loads(line)["prompt"]
        assert any(prompt in text for text in held_out)
        assert not any(prompt in text for text in texts)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_greedy_rows_are_those_of_the_plain_way(folder: Path, pair: Pair, batch: int) -> None:
    ids = pair.encode(prompts(folder)[0])
    rows = record_request(pair, ids, 0, settings(batch=batch))
    output = greedy_answer(pair, ids, N)
    assert len(rows["accepted_run"]) == len(output)
    for n in range(len(output)):
        prefix, run_, right = ids + output[:n], 0, True
        for j in range(K):
            logits = logits_after(pair.draft, prefix)
            law = distribution(logits, 0)
            token = law.argmax(-1)
            right = right and n + j < len(output) and int(token) == output[n + j]
            run_ += right
            np.testing.assert_allclose(rows["statistics"][n, j], statistics(logits, law, token)[0], atol=3e-3)
            prefix = [*prefix, int(token)]
        assert rows["accepted_run"][n] == run_


def test_statistics_of_a_known_distribution() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.125]]))
    told = statistics(logits, distribution(logits, 0), torch.tensor([0]))[0]
    spread = np.std(np.log([0.5, 0.25, 0.125, 0.125]), ddof=1)
    np.testing.assert_allclose(told, [0.5, 1.75 * np.log(2), 0.25, spread], rtol=1e-6)


def test_acceptance_at_a_temperature_is_that_of_the_plain_way(folder: Path, pair: Pair) -> None:
    from traces.model_pair import Draws, answer, propose

    given, ids = settings(temperature=0.8), pair.encode(prompts(folder)[1])
    rows = record_request(pair, ids, 5, given)
    draws = Draws(given.seed, 5, N, K)
    output = answer(pair.target, ids, draws, 0.8, pair.end_tokens, pair.vocabulary)
    tokens = propose(pair, ids, output, draws, given)["tokens"].tolist()
    for n in range(len(output)):
        for j in range(K):
            prefix, token = ids + output[:n] + tokens[n][:j], tokens[n][j]
            p, q = (distribution(logits_after(model, prefix), 0.8)[0, token] for model in (pair.target, pair.draft))
            assert rows["acceptance"][n, j] == pytest.approx(min(1.0, float(p / q)), abs=2e-3)
            assert rows["statistics"][n, j, 0] == pytest.approx(float(q), abs=2e-3)


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_a_recording_that_is_cut_off_goes_on_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: str
) -> None:
    whole, resumed = tmp_path / "whole.npz", tmp_path / "resumed.npz"
    assert run(record.main, "record", flags(folder, whole, "--temperature", temperature)) == 0
    calls: list[int] = []

    def cut_off(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return record_piece(*arguments)

    record_piece = record.record_piece
    with monkeypatch.context() as patch:
        patch.setattr(record, "record_piece", cut_off)
        assert run(record.main, "record", flags(folder, resumed, "--temperature", temperature)) == 130
    assert not resumed.exists()
    assert len(list((tmp_path / "resumed.npz.parts").iterdir())) == 1
    other = flags(folder, resumed, "--temperature", temperature, "--seed", "9")
    assert run(record.main, "record", other) == 2  # pieces of other settings are not mixed in
    assert run(record.main, "record", flags(folder, resumed, "--temperature", temperature)) == 0
    assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed.npz", "whole.npz"]


def rules(threshold: float) -> dict[str, Rule]:
    """Stopping rules, each a function of what has been drafted in the round."""
    rng = np.random.default_rng(1)
    return {
        "never": lambda told: False,
        "fixed": lambda told: len(told) < 3,
        "random": lambda told: rng.random() < 0.7,
        "confidence": lambda told: not told or float(told[-1][0]) >= threshold,
        "survival": lambda told: float(np.prod([one[0] for one in told])) >= threshold,
    }


@pytest.mark.parametrize("name", list(rules(0.0)))
def test_speculative_decoding_gives_the_targets_own_greedy_output(folder: Path, pair: Pair, name: str) -> None:
    for text in prompts(folder)[:3]:
        ids = pair.encode(text)
        decoded = decode(pair, ids, rules(0.05)[name], N, 0.0, seed=0, most=K)
        assert decoded.output == greedy_answer(pair, ids, N)
        assert sum(accepted + 1 for _, accepted in decoded.rounds) >= len(decoded.output)


def test_a_replay_has_the_rounds_of_real_decoding(folder: Path, pair: Pair, tmp_path: Path) -> None:
    record.main(flags(folder, tmp_path / "a.npz"))
    trace = read_speculation_trace(tmp_path / "a.npz")
    for request, text in enumerate(prompts(folder)[:4]):
        for k in (1, 2, K):
            decoded: Decoded = decode(pair, pair.encode(text), lambda told, k=k: len(told) < k, N, 0.0, 0, K)
            assert list(replay(trace, request, [k])) == decoded.rounds


def test_the_rule_reproduces_the_targets_distribution() -> None:
    from scipy.stats import chi2

    words, k, rounds = 5, 2, 20_000
    rng = np.random.default_rng(7)
    # Distributions after each single token: a chain of order 1, so that the true law of three tokens is known.
    draft, target = rng.dirichlet(np.ones(words), words), rng.dirichlet(np.ones(words), words)
    counts = np.zeros((words,) * 3)
    for _ in range(rounds):
        answer = [0]
        while len(answer) < 4:
            tokens = [answer[-1]]
            for _ in range(k):
                tokens.append(int(rng.choice(words, p=draft[tokens[-1]])))
            answer += verify(target[tokens], draft[tokens[:-1]], tokens[1:], rng)
        counts[tuple(answer[1:4])] += 1
    expected = rounds * np.einsum("a,ab,bc->abc", target[0], target, target)
    kept = expected > 5
    distance = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    assert chi2.sf(distance, kept.sum() - 1) > 1e-3
    wrong = rounds * np.einsum("a,ab,bc->abc", draft[0], draft, draft)
    assert ((counts - wrong)[kept] ** 2 / np.maximum(wrong[kept], 1)).sum() > 10 * distance  # the test could tell


def test_a_real_pair_at_temperature_1_draws_from_the_target(folder: Path, pair: Pair) -> None:
    from scipy.stats import chi2

    ids = pair.encode(prompts(folder)[0])[:6]
    law = distribution(logits_after(pair.target, ids), 1.0)[0].numpy()
    q = distribution(logits_after(pair.draft, ids), 1.0).numpy()
    rng, draws = np.random.default_rng(0), 4000
    bonus = np.stack([law, law])  # what follows does not matter to the first token
    first = [verify(bonus, q, [int(rng.choice(len(law), p=q[0] / q[0].sum()))], rng)[0] for _ in range(draws)]
    likely = law * draws > 5
    observed = np.bincount(first, minlength=len(law))
    cells = [*observed[likely], observed[~likely].sum()]
    expected = np.array([*law[likely], law[~likely].sum()]) * draws
    assert chi2.sf(((cells - expected) ** 2 / expected).sum(), len(cells) - 1) > 1e-3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["--draft-tokens", "0"], "argument --draft-tokens: given '0', allowed is a whole number from 1 to 64"),
        (["--temperature", "-1"], "--temperature -1.0: allowed 0, or 0.01 to 100"),
        (["--temperature", "nan"], "--temperature nan: allowed 0"),
        (["--draft-token", "3"], "unknown flag '--draft-token'; did you mean '--draft-tokens'?"),
        (["--prompts", "none.txt"], "--prompts none.txt: no such file"),
        (["--draft", "{folder}/drafts"], "no such folder; did you mean 'draft'?"),
        (["--draft", "{folder}/tokenizer"], "tokenizer: cannot be loaded"),
        (["--max-new-tokens", "900"], "allowed: 128, the models' longest sequence"),
    ],
)
def test_wrong_flags_end_in_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], said: str
) -> None:
    wrong = [flag.format(folder=folder) for flag in wrong]
    try:
        code = run(record.main, "record", [*flags(folder, tmp_path / "a.npz"), *wrong])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    lines = capsys.readouterr().err.splitlines()
    assert (code, len(lines)) == (2, 1)
    assert said in lines[0]
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"prompt": "a"}\n{"promt": "b"}\n', "line 2"),
        ('{"prompt": "a"}\n[1]\n', "line 2"),
        ('{"prompt": 7}\n', "line 1"),
        ("{\n", "line 1"),
        ("\n\n", "holds no prompt"),
    ],
)
def test_a_bad_prompt_is_named_by_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        record.read_prompts(path)


def test_models_of_two_tokenizers_are_refused(folder: Path, pair: Pair, tmp_path: Path) -> None:
    texts, _ = training_text.split_text([TEXT])
    pair.draft.save_pretrained(tmp_path)
    training_text.train_tokenizer(texts[:3], 300).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"300 tokens.*400.*allowed: models of one tokenizer"):
        Pair.load(str(tmp_path), str(folder / "target"))


# --- on a GPU: several answers at once, a limit of time, text of other folders ---


def test_answers_at_once_are_those_one_by_one(pair: Pair, folder: Path) -> None:
    """Prompts of unequal lengths, greedy and sampled: padding on the left changes nothing but rounding."""
    from traces.model_pair import Draws, answer

    ids = [pair.encode(text) for text in prompts(folder)]
    assert len({len(one) for one in ids}) > 1
    for temperature in (0.0, 1.0):
        given = settings(temperature)
        together = answers(pair, ids, list(range(len(ids))), given)
        alone = [
            answer(pair.target, one, Draws(3, i, N, K), temperature, pair.end_tokens, pair.vocabulary)
            for i, one in enumerate(ids)
        ]
        assert together == alone


def test_recording_with_answers_at_once_has_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    for name, more in (("one", ()), ("many", ("--answers", "4"))):
        assert run(record.main, "record", flags(folder, tmp_path / f"{name}.npz", *more)) == 0
    one, many = (read_speculation_trace(tmp_path / f"{name}.npz") for name in ("one", "many"))
    assert many.header["settings"]["answers"] == 4
    assert "answers" not in one.header["settings"]
    np.testing.assert_array_equal(one.accepted_run, many.accepted_run)
    np.testing.assert_array_equal(one.offsets, many.offsets)


def test_a_limit_of_time_stops_and_the_same_command_goes_on(folder: Path, tmp_path: Path) -> None:
    limited = [*flags(folder, tmp_path / "trace.npz"), "--minutes", "1e-9"]
    assert run(record.main, "record", limited) == 75
    assert run(record.main, "record", flags(folder, tmp_path / "trace.npz")) == 0
    pair_flags = ["--out", str(tmp_path / "pair"), *SMALL]
    for _ in range(3):  # a step at a time
        assert run(train_pair.main, "train_pair", [*pair_flags, "--minutes", "1e-9"]) == 75
    assert run(train_pair.main, "train_pair", pair_flags) == 0
    again = json.loads((tmp_path / "pair" / "recipe.json").read_text())
    assert again == json.loads((folder / "recipe.json").read_text())


def test_text_of_several_folders_with_its_licence(tmp_path: Path) -> None:
    more = TEXT.parent / "json"
    texts, held_out = training_text.split_text([TEXT, more])
    alone, held_out_alone = training_text.split_text([TEXT])
    assert texts[: len(alone)] == alone
    assert len(texts) + len(held_out) > len(alone) + len(held_out_alone)
    given = train_pair.parse(["--out", str(tmp_path), "--text", str(TEXT), str(more), "--licence", "PSF-2.0"])
    assert train_pair.about_text(given.text) == "asyncio, json"
    assert given.licence == "PSF-2.0"


def test_a_chat_is_recorded_by_the_tokenizers_template(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = Pair.load(str(folder / "draft"), str(folder / "target"))
    assert run(record.main, "record", flags(folder, tmp_path / "none.npz", "--chat")) == 2
    assert "--chat: the target's tokenizer has no chat template" in capsys.readouterr().err
    pair.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}{% if add_generation_prompt %}def{% endif %}"
    )
    text = prompts(folder)[0]
    assert pair.encode(text, chat=True) == pair.encode(f"user: {text};def")
    assert pair.encode(text, chat=True) != pair.encode(text)
