"""A reader and writer of .sridx files in plain Python, from the specification alone.

Shares no code with the package: what the two agree on is what the specification says.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

MAGIC = b"\x89SRIX\r\n\x1a"
DTYPES = {
    "u8": "<u1",
    "u16": "<u2",
    "u32": "<u4",
    "u64": "<u8",
    "i64": "<i8",
    "f16": "<f2",
    "f32": "<f4",
}
VALUES = {"float32": "<f4", "int16": "<i2", "int8": "<i1"}


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and sections, every checksum and every zero checked."""
    data = path.read_bytes()
    magic, version, reserved, length, checksum = struct.unpack_from("<8sIIQQ", data)
    assert (magic, version, reserved) == (MAGIC, 1, 0)
    header_bytes = data[32 : 32 + length]
    assert xxhash.xxh3_64_intdigest(header_bytes) == checksum
    header = json.loads(header_bytes)
    sections = {}
    end = 32 + length
    for section in header["sections"]:
        start = -(-end // 64) * 64
        assert section["offset"] == start
        assert data[end:start] == bytes(start - end)
        end = start + section["length"]
        raw = data[start:end]
        assert xxhash.xxh3_64_hexdigest(raw) == section["checksum"]
        sections[section["name"]] = np.frombuffer(raw, DTYPES[section["dtype"]]).reshape(
            section["shape"]
        )
    assert end == len(data)
    return header, sections


def rows(header: dict[str, Any], sections: dict[str, np.ndarray]) -> list[list[tuple[int, float]]]:
    """The stored (latent, value or level) pairs of every row, in rank order."""
    described = header["rows"]
    if described["values"] == "ranked":
        return ranked_rows(described, sections)
    latent = np.dtype("<u2" if described["latent_bits"] == 16 else "<u4")
    value = np.dtype(VALUES[described["values"]])
    n, width = described["count"], described["width"]
    offsets = sections["row_offsets"] if width is None else np.arange(n + 1) * width
    data = sections["rows"].tobytes()
    found = []
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        m = end - start
        at = start * (latent.itemsize + value.itemsize)
        latents = np.frombuffer(data, latent, m, at)
        values = np.frombuffer(data, value, m, at + m * latent.itemsize)
        found.append(list(zip(latents.tolist(), values.tolist(), strict=True)))
    return found


def ids(header: dict[str, Any], sections: dict[str, np.ndarray]) -> list[int] | list[str]:
    """What the items are called; the order to find them by is checked."""
    n = header["rows"]["count"]
    if "id_offsets" in sections:
        offsets, raw = sections["id_offsets"].tolist(), sections["id_bytes"].tobytes()
        assert offsets[0] == 0
        assert offsets[-1] == len(raw)
        named: Any = [raw[offsets[i] : offsets[i + 1]] for i in range(n)]
    else:
        named = sections["ids"].tolist() if "ids" in sections else list(range(n))
    assert len(named) == n
    ordered = [named[row] for row in sections["id_order"]] if "id_order" in sections else named
    assert ordered == sorted(set(named)), "by ascending id, each once"
    assert header.get("ids_ascend", False) == (
        "id_order" not in sections and bool({"ids", "id_offsets"} & set(sections))
    )
    return [name.decode() for name in named] if "id_offsets" in sections else named


def journal(data: bytes, file_checksum: int) -> list[list[tuple[str, list[Any]]]]:
    """Frames of a journal, each a list of (kind, ids); every checksum is checked.

    Rows and scales are passed over by what ids must follow them: the end of the frame.
    """
    magic, version, of_file, checksum = struct.unpack_from("<8sQQQ", data)
    assert (magic, version, of_file) == (b"\x89SRJL\r\n\x1a", 1, file_checksum)
    assert checksum == xxhash.xxh3_64_intdigest(data[:24])
    at, chain, frames = 32, checksum, []
    while at < len(data):
        length, number, payload_checksum, header_checksum = struct.unpack_from("<QQQQ", data, at)
        assert number == len(frames)
        assert header_checksum == xxhash.xxh3_64_intdigest(data[at : at + 24], seed=chain)
        payload = data[at + 32 : at + 32 + length]
        assert payload_checksum == xxhash.xxh3_64_intdigest(payload, seed=chain)
        at, chain = at + 32 + length, payload_checksum
        frames.append(payload)
    return [changes(frame) for frame in frames]


def changes(payload: bytes) -> list[tuple[str, list[Any]]]:
    """Changes whose removals come with their ids; an addition ends the search or precedes one."""
    found: list[tuple[str, list[Any]]] = []
    at = 0
    while at < len(payload):
        if payload[at] == 1:
            named, at = journal_ids(payload, at + 1)
            found.append(("remove", named))
            continue
        (n,) = struct.unpack_from("<Q", payload, at + 1)
        # the ids of an addition are the first place after it from which all that is left parses
        for start in range(at + 9, len(payload)):
            try:
                named, end = journal_ids(payload, start)
                rest = changes(payload[end:])
            except (struct.error, AssertionError, UnicodeDecodeError):
                continue
            if len(named) == n:
                return [*found, ("add", named), *rest]
        raise AssertionError("an addition without ids")
    return found


def journal_ids(payload: bytes, at: int) -> tuple[list[Any], int]:
    """Ids of a change, and where they end."""
    kind, n = struct.unpack_from("<BQ", payload, at)
    assert kind in (0, 1)
    assert n <= len(payload)
    numbers = struct.unpack_from(f"<{n}q", payload, at + 9)
    at += 9 + 8 * n
    if kind == 0:
        return list(numbers), at
    ends = [0, *numbers]
    assert ends == sorted(ends)
    assert at + ends[-1] <= len(payload)
    texts = [payload[at + ends[i] : at + ends[i + 1]].decode() for i in range(n)]
    return texts, at + ends[-1]


def ranked_rows(
    described: dict[str, Any], sections: dict[str, np.ndarray]
) -> list[list[tuple[int, float]]]:
    """The (latent, signed level) pairs of rank-coded rows."""
    latent_bits, bits = described["latent_bits"], described["magnitude_bits"]
    row_bits = sum(latent_bits + 1 + b for b in bits)
    row_bytes = max(4, -(-row_bits // 8))
    first_levels = np.cumsum([0] + [2**b for b in bits])
    levels = sections["levels"]
    found = []
    for row in sections["rows"].reshape(-1, row_bytes):
        number = int.from_bytes(row.tobytes(), "little")
        pairs = []
        for rank, b in enumerate(bits):
            # rows without bits of latent have all latents, in their order
            latent = number & (2**latent_bits - 1) if latent_bits else rank
            number >>= latent_bits
            sign = -1 if number & 1 else 1
            number >>= 1
            level = float(levels[first_levels[rank] + (number & (2**b - 1))])
            number >>= b
            pairs.append((latent, sign * level))
        found.append(pairs)
    return found


def sketches(header: dict[str, Any], sections: dict[str, np.ndarray]) -> np.ndarray:
    """What the sketch of each place of ``cluster_rows`` stands for, shape (n, d)."""
    levels = sections["sketch_levels"]
    subspaces, width, _ = levels.shape
    n, d = header["rows"]["count"], sections["dictionary"].shape[1]
    found = np.zeros((n, subspaces * width))
    for place in range(n):
        for m in range(subspaces):
            both = int(sections["sketches"][place // 32, m, place % 16])
            code = both & 15 if place % 32 < 16 else both >> 4
            found[place, m * width : (m + 1) * width] = levels[m, :, code]
    return found[:, :d]


def scales(header: dict[str, Any], sections: dict[str, np.ndarray], mode: str) -> list[float]:
    """What the sums of rows are multiplied by in a mode."""
    name = header["modes"][mode]
    if name is None:
        return [1.0] * header["rows"]["count"]
    (entry,) = [section for section in header["sections"] if section["name"] == name]
    unit = entry.get("unit", 1.0)
    return [float(scale) * unit for scale in sections[name]]


def bound(weight: float) -> int:
    """The smallest bound of postings that is not below the magnitude of a weight."""
    candidates = np.arange(0x7F81, dtype=np.uint32)
    values = (candidates << 16).view(np.float32).astype(np.float64)
    return max(1, int(np.searchsorted(values, abs(weight), side="left")))


def postings(
    header: dict[str, Any], sections: dict[str, np.ndarray], block_items: int
) -> dict[str, np.ndarray]:
    """The four sections of postings that the rows of a file make."""
    stored, by_row = rows(header, sections), scales(header, sections, "sparse")
    lists: dict[tuple[int, bool, int], list[tuple[int, int]]] = {}
    for row, (pairs, scale) in enumerate(zip(stored, by_row, strict=True)):
        for latent, value in pairs:
            if value != 0 and scale != 0:
                key = (latent, value < 0, row // block_items)
                # sorts by descending bound, then by position
                lists.setdefault(key, []).append((-bound(scale * value), row % block_items))
    latents = sorted({latent for latent, _, _ in lists})
    starts, chunks = [], []
    squares = np.zeros(-(-len(stored) // block_items) * block_items)
    for latent in latents:
        for is_negative in (False, True):
            for block in range(-(-len(stored) // block_items)):
                starts.append(len(chunks))
                entries = sorted(lists.get((latent, is_negative, block), []))
                for first in range(0, len(entries), 7):
                    seven = [position for _, position in entries[first : first + 7]]
                    seven += [block_items] * (7 - len(seven))
                    chunks.append([-entries[first][0], *seven])
                    value = np.array([-entries[first][0] << 16], "<u4").view("<f4")[0]
                    for _, position in entries[first : first + 7]:
                        squares[block * block_items + position] += float(value) ** 2
    norms = np.sqrt(squares.reshape(-1, block_items).max(axis=1, initial=0))
    rounded = norms.astype("<f4")
    rounded[rounded < norms] = np.nextafter(rounded[rounded < norms], np.float32(np.inf))
    return {
        "postings_latents": np.array(latents, "<u4"),
        "postings_starts": np.array([*starts, len(chunks)], "<u4"),
        "postings_norms": rounded,
        "postings": np.array(chunks, "<u2").reshape(-1, 8),
    }


def assemble(
    header: dict[str, Any],
    sections: dict[str, bytes],
    *,
    version: int = 1,
    reserved: int = 0,
    fix_up: bool = True,
) -> bytes:
    """A file of this header and these sections.

    ``fix_up`` places the sections and computes lengths and checksums; without it the header is
    written as it stands, however wrong.
    """
    header = json.loads(json.dumps(header))
    body_start = 0
    encoded = json.dumps(header).encode()
    while fix_up:
        end = 32 + len(encoded)
        for section in header["sections"]:
            raw = sections[section["name"]]
            section["offset"] = -(-end // 64) * 64
            section["length"] = len(raw)
            section["checksum"] = xxhash.xxh3_64_hexdigest(raw)
            end = section["offset"] + len(raw)
        again = json.dumps(header).encode()
        if len(again) == len(encoded):
            encoded = again
            break
        encoded = again
    out = bytearray(
        struct.pack(
            "<8sIIQQ", MAGIC, version, reserved, len(encoded), xxhash.xxh3_64_intdigest(encoded)
        )
    )
    out += encoded
    for section in header["sections"]:
        body_start = -(-len(out) // 64) * 64
        out += bytes(body_start - len(out))
        out += sections[section["name"]]
    return bytes(out)
