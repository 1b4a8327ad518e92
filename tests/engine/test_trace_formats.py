"""Files of request traces as people have them: published columns, columns of one's own, gzip, windows, units, failed requests."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from wisp_gym.scenario.parts import TraceFormat
from wisp_gym.traces import request_rows, requests
from wisp_gym.traces.request_formats import FORMATS, TraceError
from wisp_gym.traces.requests import cached_trace, read_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
AZURE = HEADER + "".join(f"2024-05-10 00:00:{second:02d}.5+00:00,{100 + second},{10 + second}\n" for second in range(8))
SEEN = [(0.0, 472, 18), (1.5, 1087, 230)]  # what each file below holds
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n{}"
FILES = {
    "azure": HEADER + "2023-11-16 18:15:46.6805900,472,18\n2023-11-16 18:15:48.1805900,1087,230\n",
    "mooncake": '{"timestamp": 27000, "input_length": 472, "output_length": 18, "hash_ids": [0]}\n'
    '{"timestamp": 28500, "input_length": 1087, "output_length": 230, "hash_ids": [0, 1, 2]}\n',
    "bailian": '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 61.0, "input_length": 472, "output_length": 18, "turn": 1}\n'
    '{"chat_id": 2, "parent_chat_id": 1, "timestamp": 62.5, "input_length": 1087, "output_length": 230, "turn": 2}\n',
    "burstgpt": BURSTGPT.format("5,ChatGPT,472,18,490,Conversation log\n6.5,GPT-4,1087,230,1317,API log\n"),
    "servegen": "request_id,timestamp,input_tokens,output_tokens\n0,0.5,472,18\n1,2.0,1087,230\n",
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,472,18\n1.5,1087,230\n",
    "vllm": json.dumps(
        {
            "backend": "vllm",
            "completed": 2,
            "input_lens": [1087, 472, 9],
            "output_lens": [230, 18, 0],
            "ttfts": [0.1, 0.1, 0],
            "start_times": [1000.5, 999.0, 1000.0],
            "errors": ["", "", "timed out"],
        }
    ),
    "guidellm": json.dumps(
        {
            "benchmarks": [
                {
                    "requests": {
                        "errored": [],
                        "incomplete": [],
                        "successful": [
                            {
                                "request_id": "b",
                                "request_start_time": 1.7e9 + 1.5,
                                "prompt_tokens": 1087,
                                "output_tokens": 230,
                            },
                            {"request_id": "a", "request_start_time": 1.7e9, "prompt_tokens": 472, "output_tokens": 18},
                        ],
                    }
                }
            ]
        }
    ),
}
OWN = {
    "csv": (
        "when,in,out\n1000,472,18\n2500,1087,230\n",
        {"time": "when", "unit": "ms", "prompt": "in", "output": "out"},
    ),
    "jsonl": (
        '{"at": "2026-01-01T00:00:00Z", "usage": {"in": 472, "out": 18}}\n'
        '{"at": "2026-01-01T00:00:01.5Z", "usage": {"in": 1087, "out": 230}}\n',
        {"time": "at", "unit": "date", "prompt": "usage.in", "output": "usage.out"},
    ),
    "json": (
        '{"runs": [[], [{"t": 7, "p": 472, "o": 18}, {"t": 1500000007, "p": 1087, "o": 230}]]}',
        {"time": "t", "unit": "ns", "prompt": "p", "output": "o", "records": "runs.1"},
    ),
}


def written(folder: Path, content: str | bytes, name: str = "requests.txt") -> Path:
    """A file of this content."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fault(folder: Path, content: str | bytes, format: str, **arguments: object) -> str:
    """The one line that reading ends with."""
    with pytest.raises(TraceError) as caught:
        read_trace(written(folder, content), format, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def rows(trace: requests.RequestTrace) -> list[tuple[float, int, int]]:
    """The requests of a trace, times to the microsecond."""
    times_s = np.round(trace.arrival_s, 6).tolist()
    return list(zip(times_s, trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True))


def test_a_scenario_may_name_every_format() -> None:
    assert set(get_args(TraceFormat)) == {*FORMATS, ""}
    assert FORMATS.keys() == FILES.keys() | OWN.keys()


@pytest.mark.parametrize("format", FILES)
def test_published_columns_are_read_by_name(tmp_path: Path, format: str) -> None:
    trace = read_trace(written(tmp_path, FILES[format]), format)
    assert rows(trace) == SEEN
    assert trace.skipped == (format == "vllm")


@pytest.mark.parametrize("format", OWN)
def test_other_columns_are_read_by_a_mapping(tmp_path: Path, format: str) -> None:
    content, columns = OWN[format]
    assert rows(read_trace(written(tmp_path, content), format, columns=columns)) == SEEN


def test_a_mapping_may_change_a_format_in_part(tmp_path: Path) -> None:
    older = FILES["guidellm"].replace("request_start_time", "start_time")
    assert "key 'request_start_time' is missing; did you mean" in fault(tmp_path, older, "guidellm")
    assert rows(read_trace(written(tmp_path, older), "guidellm", columns={"time": "start_time", "prompt": ""})) == SEEN


@pytest.mark.parametrize(
    ("format", "columns", "words"),
    [
        ("csv", {}, "trace format 'csv' says no time; it needs trace columns time, unit, prompt, output"),
        ("csv", {"time": "t", "prompt": "p", "output": "o"}, "says no unit"),
        ("csv", {"tim": "t"}, "trace column: given 'tim'; did you mean 'time'?"),
        ("vidur", {"unit": "sec"}, "unit of a trace's time: given 'sec'; allowed: s, ms, us, ns, date"),
        ("vidur", {"records": "a.b"}, "records: given 'a.b', allowed in a JSON document alone"),
    ],
)
def test_a_wrong_mapping_is_one_line(tmp_path: Path, format: str, columns: dict[str, str], words: str) -> None:
    assert words in fault(tmp_path, FILES["vidur"], format, columns=columns)


def test_a_file_of_another_format_is_recognised(tmp_path: Path) -> None:
    assert "these are the columns of trace format 'burstgpt'" in fault(tmp_path, FILES["burstgpt"], "azure")
    assert "these are the columns of trace format 'vidur'" in fault(
        tmp_path, FILES["vidur"], "csv", columns=OWN["csv"][1]
    )


@pytest.mark.parametrize(
    ("content", "format", "words"),
    [
        ("[]", "vllm", "holds no request"),
        ("{", "vllm", "not one JSON document"),
        ('{"input_lens": []}', "vllm", "key 'start_times' is missing"),
        ('{"start_times": [1], "input_lens": [1, 2], "output_lens": [1]}', "vllm", "are not lists of one length"),
        ('{"start_times": 1, "input_lens": 2, "output_lens": 1}', "vllm", "are not lists of one length"),
        ('{"start_times": [1], "input_lens": [null], "output_lens": [1]}', "vllm", "request 1: input_lens None"),
        ('{"benchmarks": []}', "guidellm", "0 members where 'benchmarks.*.requests.successful' says *"),
        ('{"benchmarks": [{}, {}]}', "guidellm", "allowed: records = 'benchmarks.0.requests.successful' (0 to 1)"),
        ('{"benchmarks": [{}]}', "guidellm", "no requests at 'benchmarks.*.requests.successful'"),
        ("3", "vllm", "no requests at 'the top'"),
        (FILES["vidur"].replace("1.5", "1_5"), "vidur", "line 3: arrived_at '1_5'; allowed: seconds from 0"),
        (FILES["vidur"].replace("1.5", "nan"), "vidur", "line 3: arrived_at 'nan'"),
        (FILES["vidur"].replace("1.5", "-1"), "vidur", "line 3: arrived_at -1.0"),
        (FILES["vidur"].replace("1.5", ""), "vidur", "line 3: arrived_at ''"),
        (FILES["vidur"].replace("1.5", "2026-01-01 00:00:00"), "vidur", "line 3: arrived_at '2026"),
        (FILES["vidur"].replace("230", "23.5"), "vidur", "line 3: num_decode_tokens '23.5'"),
        (FILES["vidur"].replace("230", ""), "vidur", "line 3: num_decode_tokens ''"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: str, format: str, words: str) -> None:
    assert words in fault(tmp_path, content, format)


# --- as published ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FILES)
@pytest.mark.parametrize("name", ["requests.gz", "unpacked-by-the-browser.gz.csv"])
def test_gzip_is_read_whatever_the_file_is_called(tmp_path: Path, format: str, name: str) -> None:
    assert rows(read_trace(written(tmp_path, gzip.compress(FILES[format].encode()), name), format)) == SEEN


def test_a_damaged_or_other_archive_is_one_line(tmp_path: Path) -> None:
    whole = gzip.compress(AZURE.encode())
    assert "cannot be unpacked" in fault(tmp_path, whole[:-20], "azure")
    assert "cannot be unpacked" in fault(tmp_path, whole[:20] + b"\0" * 30 + whole[50:], "azure")
    assert "a zip archive; unpack it first" in fault(tmp_path, b"PK\3\4rest", "azure")
    assert "a Parquet file; write it as text first: pandas.read_parquet" in fault(tmp_path, b"PAR1rest", "azure")
    assert "git lfs pull" in fault(tmp_path, "version https://git-lfs.github.com/spec/v1\n", "azure")
    assert "UTF-16 text; save it as UTF-8" in fault(tmp_path, AZURE.encode("utf-16"), "azure")


def test_what_a_small_file_unpacks_to_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "line 1: more than 1048576 characters" in fault(tmp_path, gzip.compress(b"0" * (1 << 23)), "azure")
    monkeypatch.setattr(request_rows, "MAX_EMPTY_LINES", 50)
    assert "line 51: 51 lines in a row without anything; allowed: at most 50" in fault(
        tmp_path, gzip.compress(b"\n , ,\r\n" * 300), "azure"
    )
    monkeypatch.setattr(request_rows, "MAX_EMPTY_LINES", 3000)
    monkeypatch.setattr(request_rows, "MAX_FILE_CHARS", 1000)
    assert "more than 1000 characters so far" in fault(tmp_path, gzip.compress(b"\n" * 2000), "azure")
    monkeypatch.setattr(request_rows, "MAX_DOCUMENT_CHARS", 100)
    assert "a document of more than 100 characters" in fault(tmp_path, gzip.compress(b" " * 200), "vllm")


def test_lines_without_anything_are_no_requests(tmp_path: Path) -> None:
    lines = AZURE.splitlines(keepends=True)
    scattered = "\ufeff \n" + lines[0] + "  \n" + lines[1] + ",,\n" + " , ,\t\n".join(lines[2:]) + "\n \n"
    plain, other = (read_trace(written(tmp_path, text), "azure") for text in (AZURE, scattered))
    assert rows(other) == rows(plain)
    assert other.skipped == 0
    content = FILES["bailian"].replace("\n", "\n  \n")
    assert rows(read_trace(written(tmp_path, content), "bailian")) == SEEN


def test_requests_without_tokens_are_skipped_and_counted(tmp_path: Path) -> None:
    body = "1,m,0,18,18,a\n5,m,472,18,490,a\n5.5,m,300,0,300,a\n6.5,m,1087,230,1317,a\n6.5,m,0,0,0,a\n"
    trace = read_trace(written(tmp_path, BURSTGPT.format(body)), "burstgpt")
    assert rows(trace) == SEEN
    assert trace.skipped == 3


# --- units -----------------------------------------------------------------------------------------------------------


def hour(step: float) -> str:
    """7,200 requests, half a second apart in a unit of 1 / `step` half seconds."""
    return "".join(f'{{"timestamp": {k * step:g}, "input_length": 9, "output_length": 3}}\n' for k in range(7200))


def test_seconds_are_not_read_as_milliseconds(tmp_path: Path) -> None:
    message = fault(tmp_path, hour(0.5), "mooncake")
    assert "7200 requests within 3.5995 s if times are in ms" in message
    assert "(trace column unit = 's' or 'ms')" in message
    assert read_trace(written(tmp_path, hour(0.5)), "mooncake", columns={"unit": "s"}).arrival_s[-1] == 3599.5
    assert read_trace(written(tmp_path, hour(0.5)), "mooncake", columns={"unit": "ms"}).arrival_s[-1] == pytest.approx(
        3.5995
    )
    assert read_trace(written(tmp_path, hour(500)), "mooncake").arrival_s[-1] == 3599.5


# --- windows and limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "prompts", "first_s"),
    [
        ({"start_s": 3.0}, range(103, 108), 0.0),
        ({"start_s": 2.5, "rows": 2}, range(103, 105), 0.5),
        ({"rows": 3}, range(100, 103), 0.0),
        ({"rows": 100}, range(100, 108), 0.0),
    ],
)
def test_a_window_counts_from_its_start(
    tmp_path: Path, window: dict[str, float], prompts: range, first_s: float
) -> None:
    trace = read_trace(written(tmp_path, AZURE), "azure", **window)  # type: ignore[arg-type]
    assert trace.prompt_tokens.tolist() == list(prompts)
    np.testing.assert_allclose(trace.arrival_s, first_s + np.arange(len(prompts)), atol=1e-9)


def test_a_window_does_not_look_at_what_follows(tmp_path: Path) -> None:
    assert len(read_trace(written(tmp_path, AZURE + "broken\n"), "azure", rows=8)) == 8
    assert "line 10: 1 cells" in fault(tmp_path, AZURE + "broken\n", "azure")
    assert len(read_trace(written(tmp_path, AZURE), "azure", max_rows=4, rows=4)) == 4
    assert "line 6: more than 4 requests; allowed: at most 4; take a window" in fault(
        tmp_path, AZURE, "azure", max_rows=4
    )
    assert "no request from 9 s on, 7 s after the first is the last" in fault(tmp_path, AZURE, "azure", start_s=9.0)


def test_a_hundred_thousand_requests_take_a_second(tmp_path: Path) -> None:
    lines = "".join(
        f"2024-05-10 00:{k // 6000:02d}:{k // 100 % 60:02d}.{k % 100:02d}+00:00,100,10\n" for k in range(100_000)
    )
    path = written(tmp_path, HEADER + lines)
    start_s = time.process_time()
    trace = read_trace(path, "azure")
    assert time.process_time() - start_s < 2.0  # half a second on an idle machine
    assert (len(trace), trace.arrival_s[-1]) == (100_000, pytest.approx(999.99))
    assert requests.MAX_ROWS >= 5_290_000  # all of BurstGPT


def test_a_file_is_read_once_while_it_stays_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, AZURE)
    first = cached_trace(str(path), "azure", {}, 0.0, 0)
    assert cached_trace(str(path), "azure", {}, 0.0, 0) is first
    with pytest.raises(ValueError, match="read-only"):
        first.arrival_s[0] = 1.0
    assert len(cached_trace(str(path), "azure", {}, 0.0, 3)) == 3
    written(tmp_path, FILES["azure"])
    assert rows(cached_trace(str(path), "azure", {}, 0.0, 0)) == SEEN
    with pytest.raises(TraceError, match="no such file"):
        cached_trace(str(tmp_path / "absent.csv"), "azure", {}, 0.0, 0)
