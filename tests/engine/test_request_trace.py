"""Request traces: both formats there and back, every bad line by name, and the recorder against its own model."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces.record_requests import AZURE_CONV_2023, main, record
from wisp_gym.cli import run
from wisp_gym.traces.request_formats import TraceError
from wisp_gym.traces.request_rows import MAX_LINE_CHARS
from wisp_gym.traces.requests import WRITERS, RequestTrace, read_trace, sample_path, write_trace

AZURE_CONV = Path(__file__).parents[3] / "shared" / "data" / "A_workload" / "azure2023_conv.csv"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
GOOD = "2023-11-16 18:17:03.9799600,374,44\n"
MOONCAKE = '{"timestamp": 5, "input_length": 9, "output_length": 3, "hash_ids": [0]}\n'
RESOLUTION_S = {"azure": 1e-7, "mooncake": 1e-3}
SAMPLES = [("azure", "azure-conv-like.csv", 1), ("mooncake", "mooncake-conv-like.jsonl", 2)]


def fault(tmp_path: Path, text: str | bytes, format: str = "azure", **limits: int) -> str:
    """The message that reading `text` ends with, without the file's name; it is one line that starts with it."""
    path = tmp_path / "requests.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TraceError) as caught:
        read_trace(path, format, **limits)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 400
    return message.removeprefix(f"{path}: ")


def test_azure_lines_become_seconds_since_the_first(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "\ufeffGeneratedTokens,Extra,TIMESTAMP,ContextTokens\r\n"
        "44,a,2023-11-16 23:59:59.9999999,374\r\n"
        "\r\n"
        '109,"b,c",2023-11-17 00:00:00.5,396\r\n'
        "7,,2023-11-17T01:00:01+01:00,5\r\n",
        encoding="utf-8",
    )
    trace = read_trace(path, "azure")
    np.testing.assert_allclose(trace.arrival_s, [0.0, 0.5000001, 1.0000001], rtol=0, atol=1e-12)
    assert trace.prompt_tokens.tolist() == [374, 396, 5]
    assert trace.output_tokens.tolist() == [44, 109, 7]
    assert (trace.arrival_s.dtype, trace.prompt_tokens.dtype, trace.output_tokens.dtype) == ("f8", "i4", "i4")


def test_mooncake_lines_become_seconds_since_the_first(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(MOONCAKE + "\n" + '{"output_length": 1, "input_length": 70000, "timestamp": 3005.25}')
    trace = read_trace(path, "mooncake")
    np.testing.assert_allclose(trace.arrival_s, [0.0, 3.00025], rtol=0, atol=1e-12)
    assert trace.prompt_tokens.tolist() == [9, 70000]
    assert trace.output_tokens.tolist() == [3, 1]


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.floats(0, 1e6), st.integers(1, 10_000_000), st.integers(1, 10_000_000)), min_size=1, max_size=20
    ),
    format=st.sampled_from(sorted(WRITERS)),
)
def test_a_written_trace_reads_back_to_the_resolution_of_its_format(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, int, int]], format: str
) -> None:
    arrival_s, prompt_tokens, output_tokens = (np.array(column) for column in zip(*sorted(rows), strict=True))
    path = tmp_path_factory.mktemp("traces") / "requests"
    write_trace(RequestTrace(arrival_s - arrival_s[0], prompt_tokens, output_tokens), path, format)
    read = read_trace(path, format)
    np.testing.assert_allclose(read.arrival_s, arrival_s - arrival_s[0], rtol=0, atol=0.51 * RESOLUTION_S[format])
    np.testing.assert_array_equal(read.prompt_tokens, prompt_tokens)
    np.testing.assert_array_equal(read.output_tokens, output_tokens)
    assert [other.name for other in path.parent.iterdir()] == ["requests"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no request"),
        ("\n\n", "holds no request"),
        (HEADER, "holds no request"),
        ("TIMESTAMP,ContextTokns,GeneratedTokens\n" + GOOD, "did you mean 'ContextTokens' by 'ContextTokns'?"),
        ("t_s,input_tokens,output_tokens\n0,1,2\n", "line 1: column 'TIMESTAMP' is missing"),
        ("TIMESTAMP,TIMESTAMP,ContextTokens,GeneratedTokens\n", "line 1: column 'TIMESTAMP' stands twice"),
        (HEADER + "2023-11-16 18:17:03.97,374\n", "line 2: 2 cells; allowed: 3"),
        (HEADER + GOOD + "\n" + GOOD.replace("374", "-1"), "line 4: ContextTokens '-1'; allowed: a whole number"),
        (HEADER + GOOD.replace("44", "nan"), "line 2: GeneratedTokens 'nan'"),
        (HEADER + GOOD.replace("44", "0"), "holds no request with tokens (1 without)"),
        (HEADER + GOOD.replace(",374", ",-0"), "line 2: ContextTokens '-0'"),
        (HEADER + GOOD.replace("44", "4.5"), "line 2: GeneratedTokens '4.5'"),
        (HEADER + GOOD.replace("44", "9" * 5000), "line 2: GeneratedTokens '999"),
        (HEADER + GOOD.replace("44", "10000001"), "allowed: a whole number from 1 to 10000000"),
        (HEADER + GOOD.replace("44", "٤"), "line 2: GeneratedTokens '٤'"),
        (HEADER + GOOD.replace("11-16", "11-31"), "line 2: TIMESTAMP '2023-11-31 18:17:03.9799600'; allowed: a date"),
        (HEADER + GOOD.replace("2023-11-16 ", ""), "line 2: TIMESTAMP '18:17:03.9799600'"),
        (HEADER + GOOD + GOOD.replace(":03.", ":02."), "line 3: a time 1 s before the line above; allowed: lines in"),
        (HEADER + GOOD.replace("2023", "0001") + GOOD, "line 3: a time 6.38e+10 s after the first"),
        (HEADER + '"' + GOOD, "unexpected end of data"),
        (HEADER.encode() + b"\xff\xfe\n", "not UTF-8"),
        (HEADER + "a" * (MAX_LINE_CHARS + 1), f"line 2: more than {MAX_LINE_CHARS} characters"),
        (HEADER + '"' + "a\n" * 100_000, "field larger than field limit"),
    ],
)
def test_a_bad_azure_file_is_one_line_that_names_the_place(tmp_path: Path, text: str | bytes, expected: str) -> None:
    message = fault(tmp_path, text)
    if expected.startswith("line 3: a time 6.38e+10"):
        assert message.startswith("line 3: a time 6.38")
    else:
        assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no request"),
        ("{", "line 1: '{'; allowed: one JSON object a line"),
        ("[1, 2]\n", "line 1: [1, 2]; allowed: a JSON object"),
        ("[" * 100_000, "line 1: '[["),
        (
            MOONCAKE + MOONCAKE.replace("output_length", "outputlength"),
            "line 2: key 'output_length' is missing; did you",
        ),
        (MOONCAKE.replace("9", "-9"), "line 1: input_length -9; allowed: a whole number from 1"),
        (MOONCAKE.replace("9", "NaN"), "line 1: input_length nan"),
        (MOONCAKE.replace("9", "true"), "line 1: input_length True"),
        (MOONCAKE.replace("9", "1e3"), "line 1: input_length 1000.0"),
        (MOONCAKE.replace("5", "NaN"), "line 1: timestamp nan; allowed: milliseconds from 0"),
        (MOONCAKE.replace("5", "-1"), "line 1: timestamp -1"),
        (MOONCAKE.replace("5", "1e300"), "line 1: timestamp 1e+300"),
        (MOONCAKE.replace("5", "1" * 4000), "line 1: timestamp 111"),
        (MOONCAKE.replace("5", "1" * 5000), "line 1: '{"),
        (MOONCAKE + MOONCAKE.replace("5", "4"), "line 2: a time 0.001 s before the line above"),
    ],
)
def test_a_bad_mooncake_file_is_one_line_that_names_the_place(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in fault(tmp_path, text, "mooncake")


def test_rows_are_limited(tmp_path: Path) -> None:
    assert fault(tmp_path, HEADER + GOOD * 3, max_rows=2).startswith("line 4: more than 2 requests")


def test_places_formats_and_samples_are_named_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "requests.csv").write_text(HEADER + GOOD)
    with pytest.raises(TraceError, match=r"no such file; did you mean 'requests\.csv'\?"):
        read_trace(tmp_path / "request.csv", "azure")
    with pytest.raises(TraceError, match="not a regular file"):
        read_trace(tmp_path, "azure")
    with pytest.raises(
        TraceError, match=r"trace format: given 'azur'; did you mean 'azure'\? allowed: azure, mooncake"
    ):
        read_trace(tmp_path / "requests.csv", "azur")
    with pytest.raises(TraceError, match=r"no sample trace 'azure\.csv'; did you mean 'azure-conv-like\.csv'\?"):
        sample_path("azure.csv")
    with pytest.raises(TraceError, match="cannot be written"):
        write_trace(read_trace(tmp_path / "requests.csv", "azure"), tmp_path / "absent" / "requests.csv", "azure")


@pytest.mark.parametrize(
    ("arrival_s", "prompt_tokens"),
    [([], []), ([0.0, 1.0], [1]), ([1.0, 0.5], [1, 1]), ([np.nan], [1]), ([-1.0], [1]), ([0.0], [0]), ([0.0], [1.5])],
)
def test_a_trace_refuses_arrays_that_are_no_trace(arrival_s: list[float], prompt_tokens: list[float]) -> None:
    with pytest.raises(TraceError, match=r"allowed|must be"):
        RequestTrace(np.array(arrival_s), np.array(prompt_tokens), np.ones(len(arrival_s), int))


@pytest.mark.parametrize(("format", "name", "seed"), SAMPLES)
def test_a_shipped_sample_is_what_the_readme_says_and_what_the_recorder_makes(
    tmp_path: Path, format: str, name: str, seed: int
) -> None:
    sample = sample_path(name)
    assert f"`{name}` | 300 **synthetic** requests" in (sample.parent / "README.md").read_text()
    assert len(read_trace(sample, format)) == 300
    again = tmp_path / name
    main(["--format", format, "--rows", "300", "--seed", str(seed), "--out", str(again)])
    made, shipped = read_trace(again, format), read_trace(sample, format)
    # Lengths are rounded exponentials: another processor's last bit may move a few of them by one token.
    np.testing.assert_allclose(made.arrival_s, shipped.arrival_s, atol=2 * RESOLUTION_S[format])
    np.testing.assert_allclose(made.prompt_tokens, shipped.prompt_tokens, atol=1)
    np.testing.assert_allclose(made.output_tokens, shipped.output_tokens, atol=1)


def dispersion(arrival_s: np.ndarray, window_s: float) -> float:
    """Index of dispersion of counts: variance over mean of the number of arrivals in windows of `window_s`."""
    counts = np.bincount((arrival_s / window_s).astype(int))[:-1]
    return float(counts.var() / counts.mean())


def test_recorded_arrivals_and_lengths_follow_the_model() -> None:
    trace = record(AZURE_CONV_2023, 200_000, 5.53, seed=0)
    assert len(trace) / trace.arrival_s[-1] == pytest.approx(5.53, rel=0.04)
    for window_s, theory in ((1.0, 1.35), (10.0, 4.26), (60.0, 15.8)):
        assert dispersion(trace.arrival_s, window_s) == pytest.approx(theory, rel=0.15)
    for tokens, part in ((trace.prompt_tokens, AZURE_CONV_2023.prompt), (trace.output_tokens, AZURE_CONV_2023.output)):
        assert np.median(tokens) == pytest.approx(np.exp(part.log_mean), rel=0.02)
        assert np.log(tokens).std() == pytest.approx(part.log_std, rel=0.03)


@pytest.mark.skipif(not AZURE_CONV.exists(), reason="the public Azure trace is not at hand")
def test_azures_own_trace_reads_fast_and_looks_like_the_model(tmp_path: Path) -> None:
    table = np.loadtxt(AZURE_CONV, delimiter=",", skiprows=1)
    path = tmp_path / "azure.csv"
    write_trace(RequestTrace(table[:, 0], table[:, 1].astype(int), table[:, 2].astype(int)), path, "azure")
    start_s = time.process_time()
    trace = read_trace(path, "azure")
    assert time.process_time() - start_s < 0.5
    assert len(trace) == 19_366
    np.testing.assert_allclose(trace.arrival_s, table[:, 0], atol=1e-6)
    assert np.log(trace.prompt_tokens).mean() == pytest.approx(AZURE_CONV_2023.prompt.log_mean, abs=0.01)
    assert np.log(trace.output_tokens).std() == pytest.approx(AZURE_CONV_2023.output.log_std, abs=0.01)
    for window_s, modelled in ((1.0, 1.35), (10.0, 4.26), (60.0, 15.8)):
        assert dispersion(trace.arrival_s, window_s) == pytest.approx(modelled, rel=0.25)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--rows", "0"], "argument --rows: given '0', allowed is a whole number from 1 to 1000000"),
        (["--rows", "x"], "argument --rows: given 'x', allowed is a whole number"),
        (["--rate", "nan"], "--rate nan: allowed"),
        (["--rate", "0"], "--rate 0.0: allowed"),
        (["--seed", "-1"], "argument --seed: given '-1', allowed is a whole number from 0"),
        (["--format", "mooncakes"], "did you mean 'mooncake'?"),
        (["--formt", "azure"], "unknown flag '--formt'; did you mean '--format'? allowed: --format, --help"),
        (["--scenario-like", "wisp-a100-qwen3-32"], "wisp-a100-qwen3-32b"),
    ],
)
def test_a_wrong_flag_is_one_line_exit_code_2_and_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], expected: str
) -> None:
    try:
        code = run(main, "record_requests", [*flags, "--out", str(tmp_path / "requests.csv")])
    except SystemExit as exit:
        code = exit.code
    message = capsys.readouterr().err
    assert code == 2
    assert expected in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_lengths_can_be_a_scenarios(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    main(["--scenario-like", "wisp-a100-qwen3-32b", "--rows", "2000", "--out", str(path)])
    from wisp_gym import scenario

    prompt = scenario.load("wisp-a100-qwen3-32b").workload.prompt
    tokens = read_trace(path, "azure").prompt_tokens
    assert np.median(tokens) == pytest.approx(prompt.median_tokens, rel=0.1)
    assert prompt.min_tokens <= tokens.min() <= tokens.max() <= prompt.max_tokens
