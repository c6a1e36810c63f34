//! XAES-256-GCM (C2SP): AES-256-GCM with a 24-byte nonce, of which the first half makes a sub-key.
//!
//! The sub-key is SP 800-108r1's KDF in counter mode with CMAC, which for these fixed inputs comes down to
//! two AES blocks: `AES(K, K1 xor (00 01 58 00 | N[..12]))` and the same with 02. One sub-key serves a whole
//! commit, so its cost is paid once in up to 512 records.

use aes::Aes256;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::key::Secret;
use super::locked::Locked;

/// Bytes of the nonce that select the sub-key.
pub const PREFIX_BYTES: usize = 12;
/// Bytes of an authentication tag.
pub const TAG_BYTES: usize = 16;

/// A 128-bit authentication tag.
pub type Tag = [u8; TAG_BYTES];

/// The ciphertext, its nonce or its associated data are not what was sealed under this key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed: altered, moved, or sealed under another key")]
pub struct Forged;

/// Longer than AES-GCM seals under one nonce (SP 800-38D: 2^39 - 256 bits).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too long to be sealed as one record")]
pub struct TooLong;

/// A 256-bit key, set up for making sub-keys, in locked memory.
pub struct Xaes(Locked<Schedule>);

/// Round keys begin with the key itself.
struct Schedule {
    cipher: Aes256,
    k1: [u8; 16],
}

/// The AES-256-GCM key of one nonce prefix, in locked memory. ring does not clear its keys; that memory does.
/// There is a key unless ring refuses one of 32 bytes, which it does not.
pub struct SubKey(Locked<Option<LessSafeKey>>);

impl Xaes {
    /// Sets the key up: one block for CMAC's K1.
    pub fn new(key: &Secret<32>) -> Xaes {
        Xaes(Locked::new(|| {
            let cipher = Aes256::new(key.expose().into());
            let mut l = [0; 16];
            cipher.encrypt_block((&mut l).into());
            // Doubling in GF(2^128); the reduction is masked so that it takes no branch on key bits.
            let wide = u128::from_be_bytes(l);
            let k1 = (wide << 1) ^ ((wide >> 127).wrapping_neg() & 0x87);
            Schedule { cipher, k1: k1.to_be_bytes() }
        }))
    }

    /// The sub-key of one nonce prefix.
    pub fn derive(&self, prefix: &[u8; PREFIX_BYTES]) -> SubKey {
        SubKey(Locked::new(|| {
            let mut key = Zeroizing::new([0u8; 32]);
            let (halves, _) = key.as_chunks_mut::<16>();
            for (number, half) in (1u8..).zip(halves) {
                let input = [0, number, b'X', 0].into_iter().chain(*prefix);
                for ((byte, input), k1) in half.iter_mut().zip(input).zip(self.0.k1) {
                    *byte = input ^ k1;
                }
                self.0.cipher.encrypt_block(half.into());
            }
            gcm(&key)
        }))
    }

    /// Seals `text` in place under a full 24-byte nonce.
    ///
    /// # Errors
    /// When `text` is longer than AES-GCM allows.
    pub fn seal(&self, nonce: &[u8; 24], aad: &[u8], text: &mut [u8]) -> Result<Tag, TooLong> {
        let (prefix, rest) = split(nonce);
        self.derive(&prefix).seal(&rest, aad, text)
    }

    /// Opens `text` in place; on failure `text` is worthless.
    ///
    /// # Errors
    /// When anything at all differs from what was sealed.
    pub fn open(&self, nonce: &[u8; 24], aad: &[u8], text: &mut [u8], tag: &Tag) -> Result<(), Forged> {
        let (prefix, rest) = split(nonce);
        self.derive(&prefix).open(&rest, aad, text, tag)
    }
}

impl SubKey {
    /// Seals `text` in place; `nonce` is the second half of the 24 bytes.
    ///
    /// # Errors
    /// When `text` is longer than AES-GCM allows.
    pub fn seal(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> Result<Tag, TooLong> {
        let (key, nonce) = (self.0.as_ref().ok_or(TooLong)?, Nonce::assume_unique_for_key(*nonce));
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(aad), text).map_err(|_| TooLong)?;
        tag.as_ref().try_into().map_err(|_| TooLong)
    }

    /// Opens `text` in place; on failure `text` is worthless.
    ///
    /// # Errors
    /// When anything at all differs from what was sealed.
    pub fn open(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8], tag: &Tag) -> Result<(), Forged> {
        let (key, nonce) = (self.0.as_ref().ok_or(Forged)?, Nonce::assume_unique_for_key(*nonce));
        let opened = key.open_in_place_separate_tag(nonce, Aad::from(aad), (*tag).into(), text, 0..);
        opened.map(drop).map_err(|_| Forged)
    }
}

fn gcm(key: &[u8; 32]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new)
}

fn split(nonce: &[u8; 24]) -> ([u8; 12], [u8; 12]) {
    let mut halves = ([0; 12], [0; 12]);
    let (prefix, rest) = nonce.split_at(12);
    halves.0.copy_from_slice(prefix);
    halves.1.copy_from_slice(rest);
    halves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(key: u8, aad: &[u8]) -> String {
        let xaes = Xaes::new(&Secret::take(&mut [key; 32]));
        let mut text = b"XAES-256-GCM".to_vec();
        let tag = xaes.seal(b"ABCDEFGHIJKLMNOPQRSTUVWX", aad, &mut text).unwrap();
        text.extend(tag);
        text.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn agrees_with_the_c2sp_vectors() {
        assert_eq!(sealed(1, b""), "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271");
        assert_eq!(
            sealed(3, b"c2sp.org/XAES-256-GCM"),
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"
        );
    }

    #[test]
    fn agrees_with_the_accumulated_c2sp_vector_of_10_000_iterations() {
        let (mut source, mut digest) = (Shake128::new(), Shake128::new());
        source.finish();
        for _ in 0..10_000 {
            let key = Secret::take(&mut source.squeeze(32).try_into().unwrap());
            let nonce: [u8; 24] = source.squeeze(24).try_into().unwrap();
            let len = source.squeeze(1)[0];
            let plain = source.squeeze(len as usize);
            let len = source.squeeze(1)[0];
            let aad = source.squeeze(len as usize);
            let (xaes, mut text) = (Xaes::new(&key), plain.clone());
            let tag = xaes.seal(&nonce, &aad, &mut text).unwrap();
            digest.absorb(&text);
            digest.absorb(&tag);
            xaes.open(&nonce, &aad, &mut text, &tag).unwrap();
            assert_eq!(text, plain);
        }
        digest.finish();
        let hex: String = digest.squeeze(32).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939");
    }

    #[test]
    fn opens_nothing_that_differs_in_one_field() {
        let xaes = Xaes::new(&Secret::take(&mut [9; 32]));
        let (nonce, aad) = ([4u8; 24], b"aad".to_vec());
        let mut text = b"text".to_vec();
        let tag = xaes.seal(&nonce, &aad, &mut text).unwrap();
        let opens = |xaes: &Xaes, nonce: &[u8; 24], aad: &[u8], text: &[u8], tag: &Tag| {
            xaes.open(nonce, aad, &mut text.to_vec(), tag).is_ok()
        };
        assert!(opens(&xaes, &nonce, &aad, &text, &tag));
        for at in 0..24 {
            let mut other = nonce;
            other[at] ^= 1;
            assert!(!opens(&xaes, &other, &aad, &text, &tag), "nonce byte {at}");
        }
        assert!(!opens(&xaes, &nonce, b"abd", &text, &tag));
        assert!(!opens(&xaes, &nonce, &aad, b"tex", &tag));
        assert!(!opens(&xaes, &nonce, &aad, &text, &[0; 16]));
        assert!(!opens(&Xaes::new(&Secret::take(&mut [8; 32])), &nonce, &aad, &text, &tag));
    }

    /// Test cases 13 to 16 of the GCM submission to NIST (the AES-256 ones), then the first of four groups of NIST's
    /// CAVP (gcmEncryptExtIV256, 96-bit IV, 128-bit tag): key, nonce, aad, text, sealed.
    const GCM: [[&str; 5]; 8] = [
        [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "000000000000000000000000",
            "",
            "",
            "530f8afbc74536b9a963b4f1c4cb738b",
        ],
        [
            "0000000000000000000000000000000000000000000000000000000000000000",
            "000000000000000000000000",
            "",
            "00000000000000000000000000000000",
            "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
        ],
        [
            "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
            "cafebabefacedbaddecaf888",
            "",
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255",
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015adb094dac5d93471bdec1a502270e3cc6c",
        ],
        [
            "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
            "cafebabefacedbaddecaf888",
            "feedfacedeadbeeffeedfacedeadbeefabaddad2",
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
            "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
        ],
        [
            "b52c505a37d78eda5dd34f20c22540ea1b58963cf8e5bf8ffa85f9f2492505b4",
            "516c33929df5a3284ff463d7",
            "",
            "",
            "bdc1ac884d332457a1d2664f168c76f0",
        ],
        [
            "69b458f2644af9020463b40ee503cdf083d693815e2659051ae0d039e606a970",
            "8d1da8ab5f91ccd09205944b",
            "036ad5e5494ef817a8af2f5828784a4bfedd1653",
            "f3e0e09224256bf21a83a5de8d",
            "c0a62d77e6031bfdc6b13ae217a794a9aaee48cd92e47761bf1baff0af",
        ],
        [
            "1fded32d5999de4a76e0f8082108823aef60417e1896cf4218a2fa90f632ec8a",
            "1f3afa4711e9474f32e70462",
            "",
            "06b2c75853df9aeb17befd33cea81c630b0fc53667ff45199c629c8e15dce41e530aa792f796b8138eeab2e86c7b7bee1d40b0",
            "91fbd061ddc5a7fcc9513fcdfdc9c3a7c5d4d64cedf6a9c24ab8a77c36eefbf1c5dc00bc50121b96456c8cd8b6ff1f8b3e480f30096d340f3d5c42d82a6f475def23eb",
        ],
        [
            "463b412911767d57a0b33969e674ffe7845d313b88c6fe312f3d724be68e1fca",
            "611ce6f9a6880750de7da6cb",
            "0a682fbc6192e1b47a5e0868787ffdafe5a50cead3575849990cdd2ea9b3597749403efb4a56684f0c6bde352d4aeec5",
            "e7d1dcf668e2876861940e012fe52a98dacbd78ab63c08842cc9801ea581682ad54af0c34d0d7f6f59e8ee0bf4900e0fd85042",
            "8886e196010cb3849d9c1a182abe1eeab0a5f3ca423c3669a4a8703c0f146e8e956fb122e0d721b869d2b6fcd4216d7d4d37582469cecd70fd98fec9264f71df1aee9a",
        ],
    ];

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn a_sub_key_agrees_with_the_nist_gcm_vectors() {
        for fields in GCM {
            let [key, nonce, aad, mut text, sealed] = fields.map(unhex);
            let key: [u8; 32] = key.try_into().unwrap();
            let sub_key = SubKey(Locked::new(|| gcm(&key)));
            let tag = sub_key.seal(&nonce.try_into().unwrap(), &aad, &mut text).unwrap();
            text.extend(tag);
            assert_eq!(text, sealed);
        }
    }

    #[test]
    fn aes_gcm_and_a_sub_key_open_each_others_records() {
        use aes_gcm::Aes256Gcm;
        use aes_gcm::aead::AeadInOut;
        for len in [0usize, 1, 15, 16, 17, 1000, 70_000] {
            let (key, nonce, aad) = ([len as u8; 32], [7; 12], b"bound to this");
            let ours = SubKey(Locked::new(|| gcm(&key)));
            let theirs = Aes256Gcm::new((&key).into());
            let plain: Vec<u8> = (0..len).map(|i| i as u8).collect();

            let mut text = plain.clone();
            let tag = ours.seal(&nonce, aad, &mut text).unwrap();
            let (nonce_of, tag) = ((&nonce).into(), (&tag).into());
            theirs.decrypt_inout_detached(nonce_of, aad, text.as_mut_slice().into(), tag).unwrap();
            assert_eq!(text, plain);

            let tag = theirs.encrypt_inout_detached(nonce_of, aad, text.as_mut_slice().into()).unwrap();
            ours.open(&nonce, aad, &mut text, &tag.into()).unwrap();
            assert_eq!(text, plain);
        }
    }

    /// SHAKE128 (FIPS 202), which the accumulated vector is defined by.
    struct Shake128 {
        state: [u64; 25],
        at: usize,
    }

    const RATE: usize = 168;

    impl Shake128 {
        fn new() -> Shake128 {
            Shake128 { state: [0; 25], at: 0 }
        }

        fn absorb(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.state[self.at / 8] ^= u64::from(*byte) << (8 * (self.at % 8));
                self.at += 1;
                if self.at == RATE {
                    self.permute();
                }
            }
        }

        fn finish(&mut self) {
            self.state[self.at / 8] ^= 0x1F << (8 * (self.at % 8));
            self.state[RATE / 8 - 1] ^= 0x80 << 56;
            self.permute();
        }

        fn squeeze(&mut self, len: usize) -> Vec<u8> {
            let mut out = Vec::new();
            for _ in 0..len {
                if self.at == RATE {
                    self.permute();
                }
                out.push((self.state[self.at / 8] >> (8 * (self.at % 8))) as u8);
                self.at += 1;
            }
            out
        }

        /// Keccak-f[1600] by its definition (FIPS 202 section 3.2), constants from their LFSRs.
        fn permute(&mut self) {
            let a = &mut self.state;
            let mut lfsr = 1u8;
            for _ in 0..24 {
                let c: [u64; 5] = std::array::from_fn(|x| (0..5).fold(0, |sum, y| sum ^ a[x + 5 * y]));
                for (i, lane) in a.iter_mut().enumerate() {
                    *lane ^= c[(i + 4) % 5] ^ c[(i + 1) % 5].rotate_left(1);
                }
                let (mut x, mut y, mut moved) = (1, 0, a[1]);
                for t in 0..24u32 {
                    (x, y) = (y, (2 * x + 3 * y) % 5);
                    let rotated = moved.rotate_left((t + 1) * (t + 2) / 2 % 64);
                    moved = std::mem::replace(&mut a[x + 5 * y], rotated);
                }
                for row in a.chunks_exact_mut(5) {
                    let old: [u64; 5] = row.try_into().unwrap();
                    for x in 0..5 {
                        row[x] = old[x] ^ (!old[(x + 1) % 5] & old[(x + 2) % 5]);
                    }
                }
                for j in 0..7 {
                    if lfsr & 1 != 0 {
                        a[0] ^= 1 << ((1 << j) - 1);
                    }
                    lfsr = (lfsr << 1) ^ if lfsr & 0x80 != 0 { 0x71 } else { 0 };
                }
            }
            self.at = 0;
        }
    }
}
