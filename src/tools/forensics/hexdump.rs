//! Bytes as `xxd` shows them, so that what is printed here can be compared with what an operator sees.

use std::fmt::Write;

/// Bytes on a line.
pub(super) const LINE_BYTES: usize = 16;

/// One line per 16 bytes: offset, hexadecimal digits in groups of two bytes, printable ASCII.
pub(super) fn lines(offset: u64, bytes: &[u8]) -> Vec<String> {
    let starts = (offset..).step_by(LINE_BYTES);
    starts.zip(bytes.chunks(LINE_BYTES)).map(|(start, line)| render(start, line)).collect()
}

fn render(start: u64, bytes: &[u8]) -> String {
    let mut groups = String::with_capacity(40);
    for pair in bytes.chunks(2) {
        for byte in pair {
            // Writing into a String cannot fail.
            let _ = write!(groups, "{byte:02x}");
        }
        groups.push(' ');
    }
    let printable = |byte: &u8| if matches!(byte, 0x20..=0x7e) { char::from(*byte) } else { '.' };
    let ascii: String = bytes.iter().map(printable).collect();
    format!("{start:08x}: {groups:<40} {ascii}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_like_xxd() {
        let text = b"{\"data\": \"\x00\xff\x7f~\"}\n";
        assert_eq!(
            lines(0x10, text),
            [
                "00000010: 7b22 6461 7461 223a 2022 00ff 7f7e 227d  {\"data\": \"...~\"}",
                "00000020: 0a                                       ."
            ]
        );
        assert!(lines(0, b"").is_empty());
    }
}
