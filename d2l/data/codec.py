"""One record as bytes: MessagePack of `Record.to_json`, then its CRC-32.

A query's stored teacher is added to its fields as little-endian arrays: `{"k": int, "response": int32 bytes [R],
"tokens": int32 bytes [R, k], "logp": float32 bytes [R, k]}`.
"""

import dataclasses
import zlib
from typing import Any

import msgpack
import numpy as np

from d2l.data.record import Record, Teacher

CHECKSUM_BYTES = 4


def encode(record: Record) -> bytes:
    """The bytes of a record; `decode` is the inverse."""
    fields = record.to_json()
    for query, plain in zip(record.queries, fields["queries"], strict=True):
        if query.teacher is not None:
            plain["teacher"] = _encode_teacher(query.teacher)
    packed = msgpack.packb(fields)
    return packed + zlib.crc32(packed).to_bytes(CHECKSUM_BYTES, "little")


def decode(data: bytes) -> Record:
    """The record of what `encode` gave.

    Raises:
      ValueError: the bytes are not those that were written.
    """
    packed, checksum = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    if zlib.crc32(packed).to_bytes(CHECKSUM_BYTES, "little") != checksum:
        raise ValueError("the checksum of a record is wrong")
    fields = msgpack.unpackb(packed)
    teachers = [query.pop("teacher", None) for query in fields["queries"]]
    record = Record.from_json(fields)
    if not any(teachers):
        return record
    queries = (
        query if teacher is None else query._replace(teacher=_decode_teacher(teacher))
        for query, teacher in zip(record.queries, teachers, strict=True)
    )
    return dataclasses.replace(record, queries=tuple(queries))


def _encode_teacher(teacher: Teacher) -> dict[str, Any]:
    count, k = teacher.tokens.shape
    if teacher.response.shape != (count,) or teacher.logp.shape != (count, k):
        raise ValueError(
            f"a teacher has {teacher.response.shape} response tokens, {teacher.tokens.shape} likeliest tokens and "
            f"{teacher.logp.shape} log-probabilities"
        )
    return {
        "k": k,
        "response": teacher.response.astype("<i4").tobytes(),
        "tokens": teacher.tokens.astype("<i4").tobytes(),
        "logp": teacher.logp.astype("<f4").tobytes(),
    }


def _decode_teacher(fields: dict[str, Any]) -> Teacher:
    return Teacher(
        np.frombuffer(fields["response"], "<i4"),
        np.frombuffer(fields["tokens"], "<i4").reshape(-1, fields["k"]),
        np.frombuffer(fields["logp"], "<f4").reshape(-1, fields["k"]),
    )
