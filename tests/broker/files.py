"""What the restart tests do to a data directory behind the broker's back."""

import hashlib


def fingerprint(folder):
    """Every file with a hash of its content."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flip(path, at):
    """Turns one bit around, in the middle of the file when `at` is None."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 0x10
    path.write_bytes(content)


def largest(folder, suffix):
    return max(folder.glob(f"*{suffix}"), key=lambda path: path.stat().st_size)


# ---- RocksDB's log: blocks of 32 KiB; a record is a masked CRC-32C, a length, a type, and its bytes

BLOCK_BYTES, HEADER_BYTES = 32768, 7


def crc32c_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = crc32c_table()


def masked_crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def records(content):
    """Where each record of a log begins, and the length of its bytes."""
    at = 0
    while at + HEADER_BYTES <= len(content):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < HEADER_BYTES:
            at += left
            continue
        length = int.from_bytes(content[at + 4 : at + 6], "little")
        yield at, length
        at += HEADER_BYTES + length


def repair_checksums(path):
    """Makes every record's checksum fit again, as somebody would who changes a log on purpose."""
    content = bytearray(path.read_bytes())
    repaired = 0
    for at, length in records(content):
        wanted = masked_crc32c(content[at + 6 : at + HEADER_BYTES + length]).to_bytes(4, "little")
        repaired += content[at : at + 4] != wanted
        content[at : at + 4] = wanted
    path.write_bytes(content)
    return repaired
