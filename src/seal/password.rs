//! Passwords of users: Argon2id (RFC 9106) as PHC strings. Parameters: OWASP's minimum, 19 MiB, t = 2, p = 1.
//!
//! Both functions take tens of milliseconds and 19 MiB on purpose; call them where blocking is permitted.

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::sync::OnceLock;
use zeroize::Zeroizing;

use super::locked::Workspace;
use super::nonce::{NoRandomness, random};

const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// A stored hash may not ask for more than this, so that a forged row cannot exhaust the memory.
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
const PASSES_MAX: u32 = 64;

/// A password could not be hashed: no random salt, or no 19 MiB.
#[derive(Debug, thiserror::Error)]
#[error("the password cannot be hashed: {0}")]
pub struct NotHashed(String);

/// Hashes a password under a fresh salt; gives `$argon2id$v=19$m=19456,t=2,p=1$...`.
///
/// # Errors
/// When the kernel gives no random salt, or memory is short.
pub fn hash(password: &[u8]) -> Result<String, NotHashed> {
    let not_hashed = |e: &dyn std::fmt::Display| NotHashed(e.to_string());
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|e| not_hashed(&e))?;
    let salt = random::<16>().map_err(|e| not_hashed(&e))?;
    let mut out = [0; Params::DEFAULT_OUTPUT_LEN];
    derive(Algorithm::Argon2id, Version::V0x13, &params, password, &salt, &mut out)
        .map_err(|e| not_hashed(&e))?;
    let phc = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(&params).map_err(|e| not_hashed(&e))?,
        salt: Some(Salt::new(&salt).map_err(|e| not_hashed(&e))?),
        hash: Some(Output::new(&out).map_err(|e| not_hashed(&e))?),
    };
    Ok(phc.to_string())
}

/// Whether `password` is the one of `phc`; compared in constant time. A malformed `phc` fits no password.
pub fn verify(phc: &str, password: &[u8]) -> bool {
    is_of(phc, password).unwrap_or(false)
}

fn is_of(phc: &str, password: &[u8]) -> Option<bool> {
    let parsed = PasswordHash::new(phc).ok()?;
    let params = Params::try_from(&parsed).ok()?;
    if params.m_cost() > MEMORY_KIB_MAX || params.t_cost() > PASSES_MAX {
        return None;
    }
    let algorithm = Algorithm::try_from(parsed.algorithm.as_str()).ok()?;
    let version = parsed.version.map_or(Ok(Version::default()), Version::try_from).ok()?;
    let (salt, wanted) = (parsed.salt?, parsed.hash?);
    let mut out = [0; Output::MAX_LENGTH];
    let out = out.get_mut(..wanted.len())?;
    derive(algorithm, version, &params, password, &salt, out).ok()?;
    // `Output` compares in constant time.
    Some(Output::new(out).ok()? == wanted)
}

/// Fills `out`. Its memory goes back to the system at once, and is nobody's before it is empty.
pub(super) fn derive(
    algorithm: Algorithm,
    version: Version,
    params: &Params,
    password: &[u8],
    salt: &[u8],
    out: &mut [u8],
) -> Result<(), argon2::Error> {
    let space = Workspace::new(params.block_count(), Block::new()).ok_or(argon2::Error::OutOfMemory)?;
    Argon2::new(algorithm, version, params.clone()).hash_password_into_with_memory(password, salt, out, space)
}

/// As slow as [`verify`] with a wrong password, for users who do not exist: time must not tell which do.
pub fn verify_nobody(password: &[u8]) {
    static NOBODY: OnceLock<Option<String>> = OnceLock::new();
    let phc = NOBODY.get_or_init(|| hash(b"nobody").ok());
    if let Some(phc) = phc {
        std::hint::black_box(verify(phc, password));
    }
}

/// Recognises logins that were right before, so that many connections of one client cost one Argon2id.
/// What it keeps of them is worth nothing without this process's random key.
pub struct Proof(Zeroizing<[u8; 32]>);

impl Proof {
    /// With a fresh key.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn new() -> Result<Proof, NoRandomness> {
        Ok(Proof(Zeroizing::new(random::<32>()?)))
    }

    /// HMAC-SHA256 over the parts, each with its length, so that no two lists of parts look alike.
    pub fn digest(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut block = Zeroizing::new([0; 64]);
        block[..32].copy_from_slice(&*self.0);
        let mut mac = Hmac::<Sha256>::new((&*block).into());
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_the_password_and_no_other() {
        let phc = hash(b"correct horse").unwrap();
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert!(verify(&phc, b"correct horse"));
        assert!(!verify(&phc, b"correct horse "));
        assert!(!verify(&phc, b""));
    }

    #[test]
    fn two_hashes_of_one_password_differ() {
        assert_ne!(hash(b"x").unwrap(), hash(b"x").unwrap());
    }

    #[test]
    fn verifies_a_hash_made_by_the_reference_program() {
        // argon2 0~20190702 (Debian): echo -n password | argon2 somesalt -id -t 2 -m 16 -p 1 -e
        let phc = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        assert!(verify(phc, b"password"));
        assert!(!verify(phc, b"passwore"));
    }

    #[test]
    fn refuses_what_is_no_hash_or_asks_for_too_much() {
        for phc in
            ["", "password", "$argon2id$v=19$m=19456", "$argon2id$v=19$m=4194304,t=2,p=1$c29tZXNhbHQ$AAAA"]
        {
            assert!(!verify(phc, b"password"), "{phc}");
        }
    }
}
