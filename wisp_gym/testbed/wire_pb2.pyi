from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FromDevice(_message.Message):
    __slots__ = ("round", "close")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    round: Round
    close: Close
    def __init__(self, round: _Optional[_Union[Round, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ...) -> None: ...

class FromServer(_message.Message):
    __slots__ = ("reply", "refusal")
    REPLY_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    reply: Reply
    refusal: Refusal
    def __init__(self, reply: _Optional[_Union[Reply, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("session", "round", "position", "tokens", "laws", "expected_tokens", "round_age_s", "one_way_delay_s", "draft_s", "survivals", "start")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAWS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROUND_AGE_S_FIELD_NUMBER: _ClassVar[int]
    ONE_WAY_DELAY_S_FIELD_NUMBER: _ClassVar[int]
    DRAFT_S_FIELD_NUMBER: _ClassVar[int]
    SURVIVALS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    round: int
    position: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    laws: _containers.RepeatedCompositeFieldContainer[Law]
    expected_tokens: float
    round_age_s: float
    one_way_delay_s: float
    draft_s: float
    survivals: _containers.RepeatedScalarFieldContainer[float]
    start: Start
    def __init__(self, session: _Optional[bytes] = ..., round: _Optional[int] = ..., position: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., laws: _Optional[_Iterable[_Union[Law, _Mapping]]] = ..., expected_tokens: _Optional[float] = ..., round_age_s: _Optional[float] = ..., one_way_delay_s: _Optional[float] = ..., draft_s: _Optional[float] = ..., survivals: _Optional[_Iterable[float]] = ..., start: _Optional[_Union[Start, _Mapping]] = ...) -> None: ...

class Law(_message.Message):
    __slots__ = ("tokens", "weights")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    weights: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, tokens: _Optional[_Iterable[int]] = ..., weights: _Optional[_Iterable[float]] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("version", "tokenizer", "prompt", "committed", "max_new_tokens", "temperature", "seed", "slo_tokens_per_s", "ttft_s", "request_age_s", "first_token_age_s")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SLO_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    REQUEST_AGE_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_AGE_S_FIELD_NUMBER: _ClassVar[int]
    version: int
    tokenizer: bytes
    prompt: _containers.RepeatedScalarFieldContainer[int]
    committed: _containers.RepeatedScalarFieldContainer[int]
    max_new_tokens: int
    temperature: float
    seed: int
    slo_tokens_per_s: float
    ttft_s: float
    request_age_s: float
    first_token_age_s: float
    def __init__(self, version: _Optional[int] = ..., tokenizer: _Optional[bytes] = ..., prompt: _Optional[_Iterable[int]] = ..., committed: _Optional[_Iterable[int]] = ..., max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., slo_tokens_per_s: _Optional[float] = ..., ttft_s: _Optional[float] = ..., request_age_s: _Optional[float] = ..., first_token_age_s: _Optional[float] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    def __init__(self, session: _Optional[bytes] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("session", "round", "position", "tokens", "examined", "accepted", "finished", "held_s", "state")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXAMINED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    HELD_S_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    round: int
    position: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    examined: int
    accepted: int
    finished: bool
    held_s: float
    state: ServerState
    def __init__(self, session: _Optional[bytes] = ..., round: _Optional[int] = ..., position: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., examined: _Optional[int] = ..., accepted: _Optional[int] = ..., finished: _Optional[bool] = ..., held_s: _Optional[float] = ..., state: _Optional[_Union[ServerState, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("session", "round", "reason", "text", "retry_after_s")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNSPECIFIED: _ClassVar[Refusal.Reason]
        INVALID: _ClassVar[Refusal.Reason]
        UNKNOWN_SESSION: _ClassVar[Refusal.Reason]
        BUSY: _ClassVar[Refusal.Reason]
        TOO_MANY_SESSIONS: _ClassVar[Refusal.Reason]
        DRAINING: _ClassVar[Refusal.Reason]
        FAILED: _ClassVar[Refusal.Reason]
    UNSPECIFIED: Refusal.Reason
    INVALID: Refusal.Reason
    UNKNOWN_SESSION: Refusal.Reason
    BUSY: Refusal.Reason
    TOO_MANY_SESSIONS: Refusal.Reason
    DRAINING: Refusal.Reason
    FAILED: Refusal.Reason
    SESSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    session: bytes
    round: int
    reason: Refusal.Reason
    text: str
    retry_after_s: float
    def __init__(self, session: _Optional[bytes] = ..., round: _Optional[int] = ..., reason: _Optional[_Union[Refusal.Reason, str]] = ..., text: _Optional[str] = ..., retry_after_s: _Optional[float] = ...) -> None: ...

class ServerState(_message.Message):
    __slots__ = ("busy", "batch_ends_in_s", "mean_batch_s", "queue_work_s", "queue_rounds", "utilisation", "price", "suggested_tokens")
    BUSY_FIELD_NUMBER: _ClassVar[int]
    BATCH_ENDS_IN_S_FIELD_NUMBER: _ClassVar[int]
    MEAN_BATCH_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_WORK_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    UTILISATION_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    SUGGESTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    busy: bool
    batch_ends_in_s: float
    mean_batch_s: float
    queue_work_s: float
    queue_rounds: int
    utilisation: float
    price: float
    suggested_tokens: int
    def __init__(self, busy: _Optional[bool] = ..., batch_ends_in_s: _Optional[float] = ..., mean_batch_s: _Optional[float] = ..., queue_work_s: _Optional[float] = ..., queue_rounds: _Optional[int] = ..., utilisation: _Optional[float] = ..., price: _Optional[float] = ..., suggested_tokens: _Optional[int] = ...) -> None: ...
