//! Small pictures with a few colours as PNG (ISO/IEC 15948): four bits a pixel, a palette, no compression. Bytes that
//! look random do not compress, and the pictures are small.

/// Bytes of a deflate block that is only stored (RFC 1951 section 3.2.4).
const STORED_BYTES_MAX: usize = 0xffff;

/// A picture of `pixels` in rows of `width`, each an index into `palette` (red, green, blue, opacity; at most 16).
/// What is missing from the last row is colour 0.
pub(super) fn encode(width: usize, pixels: &[u8], palette: &[[u8; 4]]) -> Vec<u8> {
    let width = width.max(1);
    let height = pixels.len().div_ceil(width).max(1);
    let mut rows = Vec::with_capacity(height * (1 + width.div_ceil(2)));
    for row in 0..height {
        // No filter.
        rows.push(0);
        let pixel = |x: usize| pixels.get(row * width + x).filter(|_| x < width).map_or(0, |p| p & 0x0f);
        rows.extend((0..width).step_by(2).map(|x| pixel(x) << 4 | pixel(x + 1)));
    }
    let mut file = vec![0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a];
    let mut header = [width as u32, height as u32].map(u32::to_be_bytes).concat();
    // Four bits, indexed colour, deflate, adaptive filters, not interlaced.
    header.extend([4, 3, 0, 0, 0]);
    chunk(&mut file, b"IHDR", &header);
    let colours: Vec<u8> = palette.iter().take(16).flat_map(|[r, g, b, _]| [*r, *g, *b]).collect();
    let opacities: Vec<u8> = palette.iter().take(16).map(|[.., opacity]| *opacity).collect();
    chunk(&mut file, b"PLTE", &colours);
    chunk(&mut file, b"tRNS", &opacities);
    chunk(&mut file, b"IDAT", &stored(&rows));
    chunk(&mut file, b"IEND", &[]);
    file
}

fn chunk(file: &mut Vec<u8>, kind: &[u8; 4], content: &[u8]) {
    file.extend((content.len() as u32).to_be_bytes());
    file.extend(kind);
    file.extend(content);
    file.extend(crc32(&[kind, content]).to_be_bytes());
}

/// A zlib stream (RFC 1950) of stored blocks.
fn stored(bytes: &[u8]) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01];
    let count = bytes.len().div_ceil(STORED_BYTES_MAX).max(1);
    for (number, block) in (1..).zip(bytes.chunks(STORED_BYTES_MAX)) {
        let len = block.len() as u16;
        stream.push(u8::from(number == count));
        stream.extend(len.to_le_bytes());
        stream.extend((!len).to_le_bytes());
        stream.extend(block);
    }
    stream.extend(adler32(bytes).to_be_bytes());
    stream
}

fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (a + b) % 65_521)
    });
    b << 16 | a
}

/// CRC-32 as PNG uses it (annex D).
fn crc32(parts: &[&[u8]]) -> u32 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    !bytes.fold(!0u32, |sum, byte| {
        (0..8).fold(
            sum ^ u32::from(*byte),
            |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xedb8_8320 } else { sum >> 1 },
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksums_are_those_of_the_standards() {
        assert_eq!(crc32(&[b"12345", b"6789"]), 0xcbf4_3926);
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
    }

    #[test]
    fn a_picture_is_laid_out_as_the_standard_says() {
        let file = encode(3, &[1, 2, 3, 4], &[[0, 0, 0, 0], [255, 0, 0, 255]]);
        assert_eq!(&file[..8], b"\x89PNG\r\n\x1a\n");
        assert_eq!(&file[8..33], b"\0\0\0\x0dIHDR\0\0\0\x03\0\0\0\x02\x04\x03\0\0\0\x6f\x5a\x7b\x29");
        // Two rows: no filter, three pixels and a half byte of nothing.
        let rows = [0, 0x12, 0x30, 0, 0x40, 0];
        assert!(file.windows(6).any(|window| window == rows), "{file:02x?}");
        assert!(file.ends_with(b"\0\0\0\0IEND\xae\x42\x60\x82"));
    }

    #[test]
    fn a_picture_of_many_rows_takes_several_blocks() {
        let stream = stored(&vec![7; STORED_BYTES_MAX + 5]);
        assert_eq!(&stream[..7], [0x78, 1, 0, 0xff, 0xff, 0, 0]);
        assert_eq!(&stream[7 + STORED_BYTES_MAX..][..10], [1, 5, 0, 0xfa, 0xff, 7, 7, 7, 7, 7]);
    }
}
