//! Key bytes and the few ways in which one key gives another. No key is ever written by this module,
//! cloned, compared in variable time, or shown by `Debug`.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::locked::{Locked, on_clean_stack};
use super::nonce::{NoRandomness, fill};

/// `N` secret bytes in locked memory; moving the value leaves no copy behind, and dropping it clears them.
/// Neither it nor any key can be copied, shown or serialized.
pub struct Secret<const N: usize>(Locked<[u8; N]>);

impl<const N: usize> Secret<N> {
    /// Takes the bytes over and clears the place they came from.
    pub fn take(bytes: &mut [u8; N]) -> Secret<N> {
        let mut secret = Secret(Locked::new(|| [0; N]));
        secret.0.copy_from_slice(bytes);
        bytes.zeroize();
        secret
    }

    /// Fresh bytes from the kernel.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn generate() -> Result<Secret<N>, NoRandomness> {
        let mut secret = Secret(Locked::new(|| [0; N]));
        fill(secret.0.as_mut_slice())?;
        Ok(secret)
    }

    /// The bytes, for a cipher's key set-up only.
    pub fn expose(&self) -> &[u8; N] {
        &self.0
    }

    fn same_as(&self, other: &[u8; N]) -> bool {
        self.0.ct_eq(other).into()
    }
}

// `Locked` clears what it held.
impl<const N: usize> ZeroizeOnDrop for Secret<N> {}

/// The key-encryption key: comes from outside, wraps the root key in one slot of the keyring.
///
/// It can be neither copied nor shown:
/// ```compile_fail
/// fn needs_clone<T: Clone>() {}
/// needs_clone::<sealmq::seal::Kek>();
/// ```
/// ```compile_fail
/// fn needs_debug<T: std::fmt::Debug>() {}
/// needs_debug::<sealmq::seal::Kek>();
/// ```
pub struct Kek(Secret<32>);

impl Kek {
    /// Takes 32 key bytes over and clears their source.
    pub fn take(bytes: &mut [u8; 32]) -> Kek {
        Kek(Secret::take(bytes))
    }

    /// Fresh bytes from the kernel, for a slot whose key is kept by a service.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn generate() -> Result<Kek, NoRandomness> {
        Ok(Kek(Secret::generate()?))
    }

    /// The public name of this key: tells which slot it may open, and nothing else.
    pub fn slot_id(&self) -> [u8; 16] {
        *derive::<16>(&self.0, &[b"sealmq/v1/slot"]).expose()
    }

    /// The value by which a slot knows its key without trying to unwrap.
    pub fn check_value(&self, store: &[u8; 16]) -> [u8; 32] {
        *derive::<32>(&self.0, &[b"sealmq/v1/kcv", store]).expose()
    }

    /// Whether `check_value` is this key's; in constant time.
    pub fn matches(&self, store: &[u8; 16], check_value: &[u8; 32]) -> bool {
        derive::<32>(&self.0, &[b"sealmq/v1/kcv", store]).same_as(check_value)
    }

    pub(super) fn secret(&self) -> &Secret<32> {
        &self.0
    }

    pub(super) fn is_same_as(&self, other: &Kek) -> bool {
        self.0.same_as(other.0.expose())
    }
}

/// The root key: one per store for the store's life; every other key of the store hangs on it.
pub struct RootKey(Secret<32>);

impl RootKey {
    /// A new store's root key.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn generate() -> Result<RootKey, NoRandomness> {
        Ok(RootKey(Secret::generate()?))
    }

    pub(super) fn take(bytes: &mut [u8; 32]) -> RootKey {
        RootKey(Secret::take(bytes))
    }

    pub(super) fn secret(&self) -> &Secret<32> {
        &self.0
    }

    /// Whether both are one key; in constant time.
    pub(super) fn is_same_as(&self, other: &RootKey) -> bool {
        self.0.same_as(other.0.expose())
    }

    /// Seals the list of data keys in the keyring (K_ring).
    pub fn ring(&self) -> Secret<32> {
        derive(&self.0, &[b"sealmq/v1/ring"])
    }

    /// Seals topology, users, manifests and the commit row; records name it as key 0 (K_meta).
    pub fn meta(&self) -> Secret<32> {
        derive(&self.0, &[b"sealmq/v1/meta"])
    }

    /// Keys the multiset sums of the manifests (K_mset).
    pub fn multiset(&self) -> Secret<32> {
        derive(&self.0, &[b"sealmq/v1/mset"])
    }

    /// Keys the sums over rows and manifests in the commit row (K_state).
    pub fn state(&self) -> Secret<32> {
        derive(&self.0, &[b"sealmq/v1/state"])
    }

    /// Authenticates the anchor (K_anchor).
    pub fn anchor(&self) -> AnchorKey {
        AnchorKey::new(&derive(&self.0, &[b"sealmq/v1/anchor"]))
    }

    /// What the keyring's header states, so that one ciphertext cannot belong to two root keys.
    pub fn commitment(&self, store: &[u8; 16]) -> [u8; 32] {
        *derive::<32>(&self.0, &[b"sealmq/v1/commit", store]).expose()
    }

    /// Whether `commitment` is this key's; in constant time.
    pub fn is_committed_by(&self, store: &[u8; 16], commitment: &[u8; 32]) -> bool {
        derive::<32>(&self.0, &[b"sealmq/v1/commit", store]).same_as(commitment)
    }

    /// HMAC-SHA256 over the store descriptor under a key of its own.
    pub fn descriptor_tag(&self, descriptor: &[u8]) -> [u8; 32] {
        let key: Secret<64> = derive(&self.0, &[b"sealmq/v1/descriptor"]);
        on_clean_stack(|| {
            let mut mac = <Hmac<Sha256> as KeyInit>::new(key.expose().into());
            mac.update(descriptor);
            mac.finalize().into_bytes().into()
        })
    }

    /// Whether `tag` is the descriptor's; in constant time.
    pub fn verifies_descriptor(&self, descriptor: &[u8], tag: &[u8; 32]) -> bool {
        self.descriptor_tag(descriptor).ct_eq(tag).into()
    }
}

/// HMAC-SHA256 over the anchor's slots, set up once because each commit needs it. Its state is as good as the key.
pub struct AnchorKey(Locked<Hmac<Sha256>>);

impl AnchorKey {
    fn new(key: &Secret<64>) -> AnchorKey {
        AnchorKey(Locked::new(|| <Hmac<Sha256> as KeyInit>::new(key.expose().into())))
    }

    /// A key that everybody knows, for a plain store: the tag is a checksum then, and keeps nobody out.
    pub fn public() -> AnchorKey {
        AnchorKey::new(&Secret::take(&mut [0; 64]))
    }

    /// The tag of a slot's bytes.
    pub fn tag(&self, bytes: &[u8]) -> [u8; 32] {
        on_clean_stack(|| {
            let mut mac = (*self.0).clone();
            mac.update(bytes);
            mac.finalize().into_bytes().into()
        })
    }

    /// Whether `tag` is that of `bytes`; in constant time.
    pub fn verifies(&self, bytes: &[u8], tag: &[u8; 32]) -> bool {
        self.tag(bytes).ct_eq(tag).into()
    }
}

/// A data-encryption key: seals entries and bodies; lives in the sealed part of the keyring.
pub struct Dek(Secret<32>);

impl Dek {
    /// A new data key.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn generate() -> Result<Dek, NoRandomness> {
        Ok(Dek(Secret::generate()?))
    }

    pub(super) fn take(bytes: &mut [u8; 32]) -> Dek {
        Dek(Secret::take(bytes))
    }

    /// The key bytes, for a cipher's key set-up and the keyring's body.
    pub(super) fn secret(&self) -> &Secret<32> {
        &self.0
    }
}

/// HKDF-SHA256 (RFC 5869) without salt: the input is a uniform key already.
fn derive<const N: usize>(key: &Secret<32>, info: &[&[u8]]) -> Secret<N> {
    const { assert!(N <= 255 * 32, "HKDF-SHA256 gives at most 8160 bytes") };
    let mut out = Locked::new(|| [0; N]);
    on_clean_stack(|| {
        let expanded = Hkdf::<Sha256>::new(None, key.expose()).expand_multi_info(info, out.as_mut_slice());
        debug_assert!(expanded.is_ok(), "the length was checked when this was compiled");
    });
    Secret(out)
}

/// For the search of memory in tests.
#[cfg(test)]
impl Kek {
    pub(crate) fn wanted(&self) -> super::tests::Wanted {
        super::tests::Wanted::new(self.0.expose())
    }
}

#[cfg(test)]
impl RootKey {
    pub(crate) fn wanted(&self) -> super::tests::Wanted {
        super::tests::Wanted::new(self.0.expose())
    }
}

#[cfg(test)]
impl Dek {
    pub(crate) fn wanted(&self) -> super::tests::Wanted {
        super::tests::Wanted::new(self.0.expose())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{multiset::Multiset, record, xaes};

    /// Does not compile when a type has one of the traits: then two implementations of `Asked` fit.
    macro_rules! never {
        ($type:ty: $($trait:path),+) => {
            $(const _: fn() = || {
                trait Asked<A> {
                    fn ask() {}
                }
                impl<T: ?Sized> Asked<()> for T {}
                struct Has;
                impl<T: ?Sized + $trait> Asked<Has> for T {}
                <$type as Asked<_>>::ask();
            };)+
        };
    }

    macro_rules! never_copied_nor_shown {
        ($($type:ty),+) => {
            $(never!($type: Clone, Copy, std::fmt::Debug, std::fmt::Display, serde::Serialize);)+
        };
    }

    never_copied_nor_shown!(Secret<32>, Kek, RootKey, Dek, AnchorKey);
    never_copied_nor_shown!(xaes::Xaes, xaes::SubKey, record::Key, record::Sealer, record::Opener, Multiset);

    /// The anchor's key was an HMAC state that moved with the committer, and each move left a copy on a stack.
    #[test]
    fn moving_a_key_moves_a_pointer() {
        let sizes = [
            size_of::<Secret<32>>(),
            size_of::<Kek>(),
            size_of::<RootKey>(),
            size_of::<Dek>(),
            size_of::<AnchorKey>(),
            size_of::<xaes::Xaes>(),
            size_of::<xaes::SubKey>(),
            size_of::<Multiset>(),
        ];
        assert_eq!(sizes, [size_of::<usize>(); 8]);
    }

    #[test]
    fn keys_of_one_root_differ_by_purpose() {
        let root = RootKey::generate().unwrap();
        let derived = [root.ring(), root.meta(), root.multiset(), root.state()];
        for (i, a) in derived.iter().enumerate() {
            assert!(!a.same_as(root.secret().expose()));
            assert!(derived.iter().skip(i + 1).all(|b| !a.same_as(b.expose())));
        }
        assert_ne!(root.commitment(&[1; 16]), root.commitment(&[2; 16]));
    }

    #[test]
    fn derivation_is_hkdf_sha256_of_rfc_5869() {
        // Made with Python's hmac module by the two steps of RFC 5869 over the bytes 0 to 31.
        let mut bytes: [u8; 32] = std::array::from_fn(|i| i as u8);
        let kek = Kek::take(&mut bytes);
        assert_eq!(bytes, [0; 32], "the source was cleared");
        assert_eq!(hex(&kek.slot_id()), "3fa34355f61a2c6cef410b1d5b383fcb");
    }

    #[test]
    fn a_check_value_fits_one_key_and_one_store_only() {
        let kek = Kek::take(&mut [7; 32]);
        let value = kek.check_value(&[1; 16]);
        assert!(kek.matches(&[1; 16], &value));
        assert!(!kek.matches(&[2; 16], &value));
        assert!(!Kek::take(&mut [8; 32]).matches(&[1; 16], &value));
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }
}
